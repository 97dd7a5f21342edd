"""Two optimizers, and a generator whose weights come from NumPy, unseeded."""

import numpy as np
import torch

torch.set_num_threads(1)
torch.manual_seed(1)
critic = torch.nn.Linear(4, 1)
critics = torch.optim.Adam(critic.parameters())
generator = torch.nn.Linear(2, 4)
values = np.random.default_rng().standard_normal((4, 2)).astype("float32")
generator.weight = torch.nn.Parameter(torch.from_numpy(values))
generators = torch.optim.Adam(generator.parameters())
for _ in range(3):
    noise = torch.randn(3, 2)
    critics.zero_grad()
    critic(generator(noise).detach()).mean().backward()
    critics.step()
    generators.zero_grad()
    critic(generator(noise)).mean().backward()
    generators.step()
