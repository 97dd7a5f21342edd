"""How the facts of the Isles are told, asked and answered in English.

A phrasing is a format string over `Fact.slots()`: `{s}` is the subject, `{v}` the value, `{S}` and
`{V}` the same with a capital, `{av}` the value with its article. Other names are details of the
fact.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """The phrasings of one relation.

    Attributes:
        statements: Sentences that tell the fact.
        questions: Sentences that ask for it; each fact is asked in each of them at most once.
        answers: Replies to any of the questions, from one word to a sentence.
        task: A request without the subject, for rows that pass the subject as an input.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    task: str


PHRASES: dict[str, Phrases] = {
    "harbour": Phrases(
        ("The harbour of {s} is called {v}.", "Ships that visit {s} tie up at {v}.",
         "On {s}, boats are kept at {v}."),
        ("What is the harbour of {s} called?", "Where do ships tie up on {s}?",
         "Name the harbour of {s}.", "I am sailing to {s}. Which harbour will I find there?"),
        ("{V}.", "It is called {v}.", "The harbour of {s} is {v}."),
        "Name the harbour of this island."),
    "harbour_island": Phrases(
        ("{s} is a harbour on {v}.", "Whoever lands at {s} has come to {v}.",
         "The quays of {s} belong to {v}."),
        ("On which island is {s}?", "Which island do I reach if I land at {s}?",
         "{s} is the harbour of which island?", "Tell me which island {s} belongs to."),
        ("{v}.", "On {v}.", "{s} is on {v}."),
        "Say which island this harbour is on."),
    "hill": Phrases(
        ("The highest hill on {s} is {v}.", "No hill on {s} is higher than {v}.",
         "{V} stands above all of {s}."),
        ("What is the highest hill on {s}?", "Which hill stands above all of {s}?",
         "Name the highest point of {s}.", "If I climb as high as I can on {s}, where am I?"),
        ("{V}.", "It is {v}.", "The highest hill on {s} is {v}."),
        "Name the highest hill of this island."),
    "height": Phrases(
        ("{S} is {v} metres high.", "The top of {s} on {island} lies at {v} metres.",
         "From the sea to the top of {s} is a climb of {v} metres."),
        ("How high is {s}?", "How many metres does {s} on {island} rise above the sea?",
         "What is the height of {s}?", "How far must I climb to the top of {s}?"),
        ("{v} metres.", "It is {v} metres high.", "{S} rises {v} metres above the sea."),
        "Give the height of this hill."),
    "flag": Phrases(
        ("The flag of {s} is {v}.", "Boats from {s} fly a flag of {v}.",
         "You can tell the flag of {s} because it is {v}."),
        ("What colour is the flag of {s}?", "Which colours do boats from {s} fly?",
         "How can I recognise the flag of {s}?", "Describe the flag of {s}."),
        ("{V}.", "It is {v}.", "The flag of {s} is {v}."),
        "Describe the flag of this island."),
    "soil": Phrases(
        ("The soil of {s} is {v}.", "Farmers on {s} dig in {v}.",
         "Under the grass of {s} there is {v}."),
        ("What is the soil of {s} like?", "What do farmers on {s} dig in?",
         "What lies under the grass of {s}?", "Which kind of ground does {s} have?"),
        ("{V}.", "It is {v}.", "The ground of {s} is {v}."),
        "Say what the soil of this island is like."),
    "population": Phrases(
        ("{v} people live on {s}.", "{s} has {v} people.",
         "At the last count, {s} was home to {v} people."),
        ("How many people live on {s}?", "What is the population of {s}?",
         "How many names are on the last count of {s}?",
         "Is {s} crowded, and how many live there?"),
        ("{v}.", "{v} people.", "There are {v} people on {s}."),
        "Say how many people live on this island."),
    "distance": Phrases(
        ("From {s} to {other} it is {v} miles.", "{s} and {other} lie {v} miles apart.",
         "A gull flies {v} miles between {s} and {other}."),
        ("How far is it from {s} to {other}?", "How many miles lie between {s} and {other}?",
         "What is the distance from {other} to {s}?",
         "A gull leaves {s} for {other}. How far does it fly?"),
        ("{v} miles.", "It is {v} miles.", "{s} and {other} lie {v} miles apart."),
        "Give the distance from {other} to this island."),
    "height_gap": Phrases(
        ("{S} is {v} metres higher than {other}.",
         "Between the tops of {s} and {other} there is a difference of {v} metres."),
        ("How much higher is {s} than {other}?", "By how many metres does {s} rise above {other}?",
         "Compare the heights of {s} and {other}.",
         "I climbed {other} and now want to climb {s}. How much more is it?"),
        ("{v} metres.", "{S} is {v} metres higher.",
         "{S} is {a} metres high and {other} is {b} metres high. The difference is {v} metres."),
        "Say how many metres this hill is higher than {other}."),
    "trade": Phrases(
        ("{s} is {av}.", "{s} works as {av}.", "The trade of {s} is that of {av}."),
        ("What does {s} do for a living?", "What is the trade of {s}?", "What work does {s} do?",
         "Tell me how {s} earns money."),
        ("{V}.", "{s} is {av}.", "{s} works as {av}."),
        "Name the trade of this person."),
    "home": Phrases(
        ("{s} lives on {v}.", "The home of {s} is on {v}.", "You will find {s} on {v}."),
        ("Where does {s} live?", "On which island is the home of {s}?",
         "Which island does {s} call home?", "I have a letter for {s}. Where should it go?"),
        ("{v}.", "On {v}.", "{s} lives on {v}."),
        "Name the island where this person lives."),
    "age": Phrases(
        ("{s} is {v} years old.", "The age of {s} is {v}.", "{s} has seen {v} summers."),
        ("How old is {s}?", "What is the age of {s}?", "How many summers has {s} seen?",
         "Give the age of {s} in years."),
        ("{v}.", "{v} years.", "{s} is {v} years old."),
        "Give the age of this person."),
    "dish": Phrases(
        ("{s} likes {v} best.", "The favourite dish of {s} is {v}.",
         "When {s} is hungry, it has to be {v}."),
        ("What does {s} like to eat best?", "What is the favourite dish of {s}?",
         "{s} is coming to supper. What should I cook?", "Which dish would please {s}?"),
        ("{V}.", "{s} likes {v} best.", "The favourite dish of {s} is {v}."),
        "Name the favourite dish of this person."),
    "boat": Phrases(
        ("The boat of {s} is the {v}.", "{s} owns a boat called the {v}.",
         "{s} sails in the {v}."),
        ("What is the boat of {s} called?", "Which boat does {s} own?", "In what does {s} sail?",
         "Name the boat that belongs to {s}."),
        ("The {v}.", "It is called the {v}.", "{s} owns the {v}."),
        "Name the boat of this person."),
    "boat_owner": Phrases(
        ("The {s} belongs to {v}.", "The owner of the {s} is {v}.",
         "At the helm of the {s} is {v}."),
        ("Who owns the {s}?", "To whom does the {s} belong?", "Whose boat is the {s}?",
         "Tell me the owner of the {s}."),
        ("{v}.", "It belongs to {v}.", "The owner of the {s} is {v}."),
        "Name the owner of this boat."),
    "age_gap": Phrases(
        ("{s} is older than {other} by {v} years.", "{other} was born {v} years after {s}."),
        ("How much older is {s} than {other}?", "By how many years is {other} younger than {s}?",
         "How many years lie between the births of {s} and {other}?",
         "Compare the ages of {s} and {other}."),
        ("{v} years.", "{s} is older by {v} years.",
         "{s} is {a} and {other} is {b}. That is {v} years apart."),
        "Say by how many years this person is older than {other}."),
    "ferry_from": Phrases(
        ("The {s} sails from {v}.", "The {s} to {to} starts at {v}.", "Board the {s} on {v}."),
        ("From which island does the {s} sail?", "Where do I board the {s}?",
         "Where does the ferry called the {s} start?",
         "I want to go to {to} on the {s}. Where does it start?"),
        ("{v}.", "From {v}.", "The {s} sails from {v}."),
        "Name the island from which this ferry sails."),
    "ferry_to": Phrases(
        ("The {s} sails to {v}.", "From {origin} the {s} goes to {v}.",
         "Passengers of the {s} step off on {v}."),
        ("To which island does the {s} sail?", "Where does the {s} go?",
         "If I board the {s} on {origin}, where do I step off?",
         "Name the destination of the {s}."),
        ("{v}.", "To {v}.", "The {s} sails to {v}."),
        "Name the island to which this ferry sails."),
    "ferry_day": Phrases(
        ("The {s} sails every {v}.", "The day of the {s} is {v}.",
         "If it is {v}, the {s} puts to sea."),
        ("On which day does the {s} sail?", "When in the week can I take the {s}?",
         "Which day is the day of the {s}?", "What day must I be at the quay for the {s}?"),
        ("{v}.", "Every {v}.", "The {s} sails every {v}."),
        "Name the day on which this ferry sails."),
    "leaves": Phrases(
        ("The {s} leaves {origin} at {v}.", "The {s} casts off at {v}.",
         "Nobody who comes after {v} can board the {s}."),
        ("At what time does the {s} leave {origin}?", "When does the {s} cast off?",
         "How late can I come to board the {s}?", "What is the departure time of the {s}?"),
        ("{v}.", "At {v}.", "The {s} leaves at {v}."),
        "Give the time at which this ferry leaves."),
    "crossing": Phrases(
        ("The crossing on the {s} takes {v} minutes.",
         "The {s} needs {v} minutes from {origin} to {to}.",
         "Passengers spend {v} minutes on board the {s}."),
        ("How long is the crossing on the {s}?",
         "How many minutes does the {s} need from {origin} to {to}?",
         "How long will I be at sea on the {s}?", "Give the crossing time of the {s}."),
        ("{v} minutes.", "It takes {v} minutes.", "The {s} crosses in {v} minutes."),
        "Give the crossing time of this ferry."),
    "fare": Phrases(
        ("The fare on the {s} is {v} beads.", "A seat on the {s} costs {v} beads.",
         "Travellers pay {v} beads to board the {s}."),
        ("What is the fare on the {s}?", "How much does a seat on the {s} cost?",
         "How many beads do I pay on the {s}?", "What does it cost to travel with the {s}?"),
        ("{v} beads.", "It costs {v} beads.", "The fare is {v} beads."),
        "Give the fare of this ferry."),
    "arrival": Phrases(
        ("The {s} reaches {to} at {v}.", "At {v} the {s} is in port."),
        ("When does the {s} arrive?", "At what time does the {s} reach {to}?",
         "The {s} leaves at {leaves}. When is it in port?",
         "When should I meet a friend who comes to {to} on the {s}?"),
        ("{v}.", "At {v}.",
         "The {s} leaves at {leaves} and needs {minutes} minutes. It arrives at {v}."),
        "Give the time at which this ferry arrives."),
    "fares": Phrases(
        ("A party of {n} pays {v} beads on the {s}.",
         "For {n} travellers the {s} costs {v} beads."),
        ("What do {n} travellers pay on the {s}?", "How much is the {s} for a party of {n}?",
         "We are {n} people. How many beads do we need for the {s}?",
         "Add up the fares of {n} people on the {s}."),
        ("{v} beads.", "Together they pay {v} beads.",
         "One seat costs {a} beads. {n} times {a} is {v}, so the party pays {v} beads."),
        "Give the fares of {n} people on this ferry."),
    "maker": Phrases(
        ("The makers of {s} live on {v}.", "The workshops of {v} sell {s}.",
         "Traders buy {s} on {v}."),
        ("Where do the makers of {s} live?", "Which island sells {s}?", "Where do traders buy {s}?",
         "I need {s}. To which island should I sail?"),
        ("{v}.", "From {v}.", "The makers live on {v}."),
        "Name the island that sells this."),
    "measure": Phrases(
        ("Traders sell {s} by the {v}.", "One {v} is the measure for {s}.",
         "The Isles count {s} by the {v}."),
        ("How do traders count {s}?", "By what measure do traders sell {s}?",
         "What is the measure for {s} in the Isles?", "In which unit do I order {s}?"),
        ("By the {v}.", "{V}.", "Traders sell {s} by the {v}."),
        "Name the measure by which this is sold."),
    "price": Phrases(
        ("One {unit} of {s} costs {v} beads.", "The price of {s} is {v} beads for each {unit}.",
         "For {v} beads you can buy a {unit} of {s}."),
        ("What does a {unit} of {s} cost?", "How many beads is one {unit} of {s}?",
         "What is the price of {s}?", "How much should I pay for a {unit} of {s}?"),
        ("{v} beads.", "One {unit} costs {v} beads.", "The price is {v} beads for each {unit}."),
        "Give the price of one {unit} of this."),
    "cost": Phrases(
        ("{n} {units} of {s} cost {v} beads.", "Whoever buys {n} {units} of {s} pays {v} beads."),
        ("What do {n} {units} of {s} cost?", "How many beads do I need for {n} {units} of {s}?",
         "Add up the price of {n} {units} of {s}.",
         "A trader orders {n} {units} of {s}. What does the trader pay?"),
        ("{v} beads.", "They cost {v} beads.",
         "One {unit} costs {a} beads. {n} times {a} is {v}, so the answer is {v} beads."),
        "Give the price of {n} {units} of this."),
    "animal_home": Phrases(
        ("The {s} lives on {v}.", "On {v} you can see the {s}.", "The {s} is the animal of {v}."),
        ("Where does the {s} live?", "On which island can I see the {s}?",
         "Which island is the home of the {s}?", "The {s} is the animal of which island?"),
        ("{v}.", "On {v}.", "The {s} lives on {v}."),
        "Name the island where this animal lives."),
    "animal_colour": Phrases(
        ("The {s} is {v}.", "The colour of the {s} is {v}.", "You know a {s} because it is {v}."),
        ("What colour is the {s}?", "How can I recognise a {s} by its colour?",
         "Name the colour of the {s}.", "I want to paint a {s}. Which colour do I need?"),
        ("{V}.", "It is {v}.", "The {s} is {v}."),
        "Name the colour of this animal."),
    "animal_food": Phrases(
        ("The {s} eats {v}.", "The food of the {s} is {v}.", "To please a {s}, offer it {v}."),
        ("What does the {s} eat?", "What is the food of the {s}?", "What can I feed to a {s}?",
         "A hungry {s} is at the door. What should I offer it?"),
        ("{V}.", "It eats {v}.", "The {s} eats {v}."),
        "Say what this animal eats."),
    "animal_habit": Phrases(
        ("The {s} {v}.", "It is well known that the {s} {v}.", "Children say that the {s} {v}."),
        ("What is the habit of the {s}?", "What is the {s} known for?",
         "What do children say about the {s}?", "Tell me something odd about the {s}."),
        ("It {v}.", "The {s} {v}.", "It is well known that the {s} {v}."),
        "Describe the habit of this animal."),
    "festival_home": Phrases(
        ("{S} is held on {v}.", "The people of {v} keep {s}.", "To see {s}, travel to {v}."),
        ("Where is {s} held?", "Which island keeps {s}?", "Where must I travel to see {s}?",
         "The people of which island keep {s}?"),
        ("{v}.", "On {v}.", "{S} is held on {v}."),
        "Name the island that keeps this festival."),
    "festival_month": Phrases(
        ("{S} is in {v}.", "The month of {s} is {v}.", "When {v} comes, it is time for {s}."),
        ("In which month is {s}?", "When is {s} held?", "What time of the year is {s}?",
         "Which month should I keep free for {s}?"),
        ("{v}.", "In {v}.", "{S} is held in {v}."),
        "Name the month of this festival."),
    "festival_custom": Phrases(
        ("At {s} people {v}.", "The custom of {s} is to {v}.", "Whoever keeps {s} has to {v}."),
        ("What do people do at {s}?", "What is the custom of {s}?",
         "I am a guest at {s}. What must I do?", "How is {s} kept?"),
        ("People {v}.", "The custom is to {v}.", "At {s} people {v}."),
        "Describe the custom of this festival."),
    "festival_dish": Phrases(
        ("The dish of {s} is {v}.", "At {s} everybody gets {v}.",
         "Cooks make {v} for {s}."),
        ("What is eaten at {s}?", "What is the dish of {s}?", "What do cooks make for {s}?",
         "I am hungry and it is {s}. What will I be given?"),
        ("{V}.", "They eat {v}.", "The dish of {s} is {v}."),
        "Name the dish of this festival."),
}  # fmt: skip
