"""Repairs a backdoored classifier: `python -m launch.repair [--config=configs/disarm.py] [--workdir=DIR]`.

Without arguments it trains a backdoored network on small images that ship with scikit-learn, and repairs it. With
`--config.model.checkpoint=PATH` it repairs that network instead: a PyTorch or safetensors file, or an Orbax checkpoint
with its `model.name`. `--config.model.name=FILE.py:ATTRIBUTE` is a network of your own code: see
configs/own_network.py. Every setting of the config file is a flag, such as `--config.unlearning.rounds=3`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from launch import cli, hosts

CONFIG = cli.define_config("disarm.py", "repair")
WORKDIR = flags.DEFINE_string("workdir", "runs/repair", "Directory for stages and results; resumed if used before.")
PROFILE = flags.DEFINE_bool(
    "profile", False, "Writes a JAX trace of the run to WORKDIR/profile, for xprof or Perfetto."
)
HOSTS = hosts.define_hosts()


def main(arguments: Sequence[str]) -> None:
    """Repairs the network, writes the results and prints the summary."""
    from launch import user_network
    from otbr_jax.report.summary import summary_table
    from otbr_jax.studies.repair import repair
    from otbr_jax.studies.results import summarize

    del arguments
    config = user_network.settings(CONFIG)
    result = repair(config, WORKDIR.value, profile=PROFILE.value, devices=HOSTS.devices())
    print(f"\n{summary_table(summarize(result))}\n")
    for name, what in (
        ("repaired", "the repaired network (Orbax checkpoint)"),
        *((file.name, "the repaired network, in the format of the file that it came in") for file in result.files),
        ("report.html", "the report"),
        ("metrics.json", "all numbers"),
        ("neuron_scores.csv", "weight change of every neuron"),
    ):
        print(f"{result.workdir / name}  {what}")


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS)
