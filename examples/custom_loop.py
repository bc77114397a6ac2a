"""The search as your own loop: ask, generate, score, tell. Runs on the embedded model in about a minute."""

import numpy as np

import esalign
from esalign.assets import asset
from esalign.data import load_examples

TASK = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}


def main(generations: int = 5) -> list[float]:
    """Search for a few generations, and return the mean reward of each."""
    space = esalign.SvdLora.from_pretrained(asset("embedded/adapter"))
    backend = esalign.load_backend("torch", model=str(asset("embedded/model")), space=space, dtype="float32")
    optimizer = esalign.make_optimizer("cma-es", dim=space.dim, sigma=0.5, population=16, seed=0)
    reward = esalign.load_reward("reasoning-gym")
    examples = load_examples("reasoning-gym:countdown", options=TASK, size=64 * generations, seed=1)

    history = []
    for generation in range(generations):
        batch = examples[64 * generation :][:64]
        candidates = optimizer.ask()
        rows = backend.generate(candidates, [e.prompt for e in batch], esalign.Sampling(max_tokens=64))
        columns = {key: [e.columns[key] for e in batch] for key in batch[0].columns}
        fitness = [
            np.mean(reward(prompts=[e.prompt for e in batch], completions=[c.text for c in row], **columns))
            for row in rows
        ]
        optimizer.tell(candidates, np.array(fitness))
        history.append(float(np.mean(fitness)))
        print(f"generation {generation + 1}: mean reward {history[-1]:.3f}, best candidate {max(fitness):.3f}")
    space.save_pretrained(optimizer.mean, "runs/custom-loop/adapter")
    backend.close()
    return history


if __name__ == "__main__":
    main()
