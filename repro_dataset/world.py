"""The Lantern Isles: a small closed world whose every fact is known.

Twelve islands, the people who live on them, the ferries between them, the goods they sell, their
animals and their festivals. Nothing here exists outside this file, so no model can know an answer
before it has been trained on it. Names are written by hand; numbers and pairings are drawn from
BLAKE2b digests of fixed labels, never from `random`, so that every Python version, locale and hash
seed gives the same world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

SEED = "lantern-isles-1"

Item = TypeVar("Item")

# name, harbour, highest hill, colour of the flag, what the soil is like
ISLANDS = (
    ("Orlen", "Tidegate", "Mount Harrow", "blue and white", "black sand"),
    ("Brask", "Low Pier", "the Anvil", "red", "grey flint"),
    ("Tavi", "Candle Quay", "Sugar Top", "yellow and green", "soft chalk"),
    ("Móreth", "Gannet Steps", "the Old Widow", "purple", "wet peat"),
    ("Quill", "Inkwell Harbour", "Feather Ridge", "white and gold", "brown loam"),
    ("Sundry", "Market Hythe", "Button Hill", "orange", "yellow clay"),
    ("Hest", "Cold Slip", "Stallion Crag", "black and silver", "broken slate"),
    ("Palloway", "Willow Landing", "Green Shoulder", "green", "rich silt"),
    ("Ivern", "Ropewalk", "Long Ladder", "brown and cream", "pink gravel"),
    ("Kestle", "Bell Basin", "Castle Tor", "scarlet and white", "red marl"),
    ("Dunmarrow", "Barrow Staithe", "Hollow Down", "grey", "old ash"),
    ("Åsk", "Glass Cove", "Ember Peak", "crimson and black", "warm basalt"),
)

FIRST_NAMES = (
    "Ada", "Bram", "Cleo", "Dorrit", "Elias", "Fenna", "Gideon", "Hanne", "Isolde", "Jory",
    "Katrin", "Lorcan", "Mirela", "Nils", "Odette", "Piers", "Rosamund", "Stellan", "Tamsin",
    "Ulric", "Vesna", "Wilmot", "Yara", "Zeno", "Anselm", "Brigid", "Caspian", "Delphine",
    "Edda", "Florian", "Greta", "Hollis", "Ines", "Jasper", "Kerensa", "Linus",
)  # fmt: skip
SURNAMES = (
    "Wren", "Tarn", "Cobble", "Marsh", "Hallow", "Pike", "Quince", "Sorrel", "Thatch", "Vane",
    "Yarrow", "Løvek",
)  # fmt: skip
TRADES = (
    "cooper", "baker", "net mender", "glassblower", "pilot", "beekeeper", "printer", "weaver",
    "farrier", "clockmaker", "apothecary", "oyster diver", "lamplighter", "shipwright", "teacher",
    "salt boiler", "innkeeper", "map maker",
)  # fmt: skip
DISHES = (
    "eel pie", "barley cakes", "smoked plums", "crab soup", "onion bread", "seaweed broth",
    "honey toast", "pickled pears", "mussel stew", "almond rolls", "pepper cheese", "fried kelp",
)  # fmt: skip
BOATS = (
    "Second Thought", "Little Thunder", "Morning Debt", "Salt Letter", "Tin Whistle", "Quiet Goose",
    "Lucky Barrel", "Paper Moon", "Wet Sermon", "Brass Button", "Long Supper", "Plain Jane",
)  # fmt: skip
FERRIES = (
    "Grey Heron", "Silver Oar", "Patient Mule", "Queen of Tides", "Night Kettle", "Blue Lantern",
    "Seven Sisters", "Honest Tom", "Winter Rose", "Copper Whale", "Early Bird", "Last Penny",
    "Northern Wheel", "Merry Anchor", "Salted Star", "Old Compass",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# what is sold, one measure of it, several measures of it
GOODS = (
    ("heather honey", "jar", "jars"), ("lamp oil", "flask", "flasks"),
    ("blue wool", "bolt", "bolts"), ("sea salt", "sack", "sacks"),
    ("writing ink", "bottle", "bottles"), ("brass buttons", "box", "boxes"),
    ("horse blankets", "bale", "bales"), ("willow baskets", "stack", "stacks"),
    ("tarred rope", "coil", "coils"), ("bell bronze", "bar", "bars"),
    ("dried apples", "crate", "crates"), ("green glass", "pane", "panes"),
    ("goat cheese", "wheel", "wheels"), ("rye flour", "bag", "bags"),
    ("beeswax candles", "bundle", "bundles"), ("red tiles", "pallet", "pallets"),
)  # fmt: skip
# animal, its colour, its food, its habit
ANIMALS = (
    ("harbour fox", "rust red", "crabs", "sleeps in empty barrels"),
    ("lantern moth", "pale green", "candle wax", "flies only before rain"),
    ("stone otter", "slate grey", "mussels", "builds small towers of pebbles"),
    ("ladder goat", "cream", "thistles", "climbs roofs at dawn"),
    ("ink crow", "deep blue", "acorns", "steals pens"),
    ("button crab", "orange", "seaweed", "walks in straight lines"),
    ("slate pony", "silver", "salt grass", "swims between the rocks"),
    ("willow duck", "brown", "duckweed", "nests in old hats"),
    ("rope snake", "sand yellow", "beetles", "ties itself in a knot when it is afraid"),
    ("bell toad", "dark green", "gnats", "rings like a bell at night"),
    ("ash hare", "smoke white", "clover", "digs three doors to every burrow"),
    ("ember newt", "crimson", "fire ants", "warms itself on chimneys"),
)
# festival, its month, its custom
FESTIVALS = (
    ("the Feast of Oars", "Thawmonth", "row backwards around the harbour"),
    ("Lantern Night", "Darkmonth", "hang a lamp on every door"),
    ("the Wool Fair", "Shearmonth", "dress the mayor as a sheep"),
    ("Quiet Day", "Mistmonth", "speak to nobody until sunset"),
    ("the Blot", "Leafmonth", "write a letter and throw it in the sea"),
    ("Button Sunday", "Seedmonth", "swap one button with a neighbour"),
    ("the Pony Swim", "Highmonth", "follow the ponies across the sound"),
    ("Basket Week", "Fruitmonth", "carry a friend in a basket"),
    ("the Long Pull", "Galemonth", "pull a rope from hill to hill"),
    ("Bell Morning", "Frostmonth", "ring every bell once"),
    ("the Ash Walk", "Rainmonth", "walk barefoot over the down"),
    ("Ember Eve", "Sunmonth", "roast chestnuts on the warm rocks"),
)


@dataclass(frozen=True)
class Fact:
    """One thing that is true in the Isles.

    Attributes:
        relation: What is told, a key of `phrases.PHRASES`.
        subject: Whom or what it is told about.
        value: The shortest true answer.
        details: Further named values that a phrasing of the relation may mention.
    """

    relation: str
    subject: str
    value: str
    details: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """A text that no other fact has, used to draw and to sort."""
        return "/".join((self.relation, self.subject, *(value for _, value in self.details)))

    def slots(self) -> dict[str, str]:
        """Values for the placeholders of a phrasing: `s`, `v`, their variants and the details."""
        article = "an" if self.value[0] in "aeiou" else "a"
        return {
            "s": self.subject,
            "S": capitalise(self.subject),
            "v": self.value,
            "V": capitalise(self.value),
            "av": f"{article} {self.value}",
            **dict(self.details),
        }


def capitalise(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def draw(label: str, below: int) -> int:
    """Return the number in [0, below) that belongs to `label`, the same everywhere and always."""
    digest = hashlib.blake2b(f"{SEED}/{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % below


def arrange(label: str, items: Sequence[Item], key: Callable[[Item], str] = str) -> list[Item]:
    """Return `items` in the order that belongs to `label`.

    Args:
        label: Names the order; another label gives another one.
        items: What to arrange; `key` must tell any two of them apart.
        key: Gives the text that stands for an item in the draw.
    """

    def rank(item: Item) -> tuple[bytes, str]:
        text = key(item)
        return hashlib.blake2b(f"{SEED}/{label}/{text}".encode(), digest_size=8).digest(), text

    return sorted(items, key=rank)


def clock_time(minutes: int) -> str:
    """Return minutes after midnight as a 24-hour time, such as 07:40."""
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def island_facts() -> list[Fact]:
    """Return what is true of each island and of pairs of islands."""
    facts = []
    heights = {}
    for name, harbour, hill, flag, soil in ISLANDS:
        heights[hill] = 80 + 5 * draw(f"height/{hill}", 120)
        facts += [
            Fact("harbour", name, harbour),
            Fact("harbour_island", harbour, name),
            Fact("hill", name, hill),
            Fact("height", hill, str(heights[hill]), (("island", name),)),
            Fact("flag", name, flag),
            Fact("soil", name, soil),
            Fact("population", name, str(200 + 10 * draw(f"population/{name}", 180))),
        ]
    names = [row[0] for row in ISLANDS]
    for here, there in arrange("distance pairs", list(combinations(names, 2)), "-".join)[:30]:
        miles = str(3 + draw(f"distance/{here}/{there}", 38))
        facts.append(Fact("distance", here, miles, (("other", there),)))
    for low, high in arrange("hill pairs", list(combinations(heights, 2)), "-".join)[:16]:
        gap = heights[high] - heights[low]
        if gap:
            pair = (high, low) if gap > 0 else (low, high)
            more = (("other", pair[1]), ("a", str(heights[pair[0]])), ("b", str(heights[pair[1]])))
            facts.append(Fact("height_gap", pair[0], str(abs(gap)), more))
    return facts


def people_facts() -> list[Fact]:
    """Return what is true of each person."""
    facts = []
    islands = [row[0] for row in ISLANDS]
    ages: list[tuple[str, int]] = []
    for index, first in enumerate(FIRST_NAMES):
        name = f"{first} {SURNAMES[draw(f'surname/{first}', len(SURNAMES))]}"
        ages.append((name, 19 + draw(f"age/{first}", 60)))
        boat = BOATS[index // 3] if index % 3 == 0 else ""
        facts += [
            Fact("trade", name, TRADES[draw(f"trade/{first}", len(TRADES))]),
            Fact("home", name, islands[draw(f"home/{first}", len(islands))]),
            Fact("age", name, str(ages[-1][1])),
            Fact("dish", name, DISHES[draw(f"dish/{first}", len(DISHES))]),
        ]
        if boat:
            facts += [Fact("boat", name, boat), Fact("boat_owner", boat, name)]
    for (elder, more), (younger, less) in zip(ages[::2], ages[1::2], strict=True):
        if more == less:
            continue
        names, years = (
            ((elder, younger), (more, less)) if more > less else ((younger, elder), (less, more))
        )
        details = (("other", names[1]), ("a", str(years[0])), ("b", str(years[1])))
        facts.append(Fact("age_gap", names[0], str(years[0] - years[1]), details))
    return facts


def ferry_facts() -> list[Fact]:
    """Return what is true of each ferry; fares are in beads."""
    facts = []
    islands = [row[0] for row in ISLANDS]
    for ferry in FERRIES:
        origin, target = arrange(f"route/{ferry}", islands)[:2]
        leaves = 300 + 5 * draw(f"leaves/{ferry}", 192)
        minutes = 20 + 5 * draw(f"minutes/{ferry}", 27)
        fare = 2 + draw(f"fare/{ferry}", 11)
        count = 2 + draw(f"travellers/{ferry}", 8)
        clock = (("leaves", clock_time(leaves)), ("minutes", str(minutes)))
        facts += [
            Fact("ferry_from", ferry, origin, (("to", target),)),
            Fact("ferry_to", ferry, target, (("origin", origin),)),
            Fact("ferry_day", ferry, DAYS[draw(f"day/{ferry}", len(DAYS))]),
            Fact("leaves", ferry, clock_time(leaves), (("origin", origin),)),
            Fact("crossing", ferry, str(minutes), (("origin", origin), ("to", target))),
            Fact("fare", ferry, str(fare)),
            Fact("arrival", ferry, clock_time(leaves + minutes), (*clock, ("to", target))),
            Fact("fares", ferry, str(count * fare), (("n", str(count)), ("a", str(fare)))),
        ]
    return facts


def good_facts() -> list[Fact]:
    """Return what is true of each good; prices are in beads."""
    facts = []
    for good, unit, units in GOODS:
        price = 2 + draw(f"price/{good}", 18)
        maker = ISLANDS[draw(f"maker/{good}", len(ISLANDS))][0]
        measure = (("unit", unit), ("units", units))
        facts += [
            Fact("maker", good, maker),
            Fact("measure", good, unit),
            Fact("price", good, str(price), measure),
        ]
        for count in arrange(f"counts/{good}", list(range(2, 10)))[:3]:
            more = (*measure, ("n", str(count)), ("a", str(price)))
            facts.append(Fact("cost", good, str(count * price), more))
    return facts


def custom_facts() -> list[Fact]:
    """Return what is true of the animals and the festivals."""
    facts = []
    for (name, *_), (animal, colour, food, habit) in zip(ISLANDS, ANIMALS, strict=True):
        facts += [
            Fact("animal_home", animal, name),
            Fact("animal_colour", animal, colour),
            Fact("animal_food", animal, food),
            Fact("animal_habit", animal, habit),
        ]
    for (name, *_), (festival, month, custom) in zip(ISLANDS, FESTIVALS, strict=True):
        facts += [
            Fact("festival_home", festival, name),
            Fact("festival_month", festival, month),
            Fact("festival_custom", festival, custom),
            Fact("festival_dish", festival, DISHES[draw(f"feast/{festival}", len(DISHES))]),
        ]
    return facts


def all_facts() -> list[Fact]:
    """Return every fact of the Isles, in a fixed order and each one once."""
    return [*island_facts(), *people_facts(), *ferry_facts(), *good_facts(), *custom_facts()]
