"""The tests that `make quick` leaves out: what compiles, starts processes, or trains a whole run."""

SLOW = (
    "ahead_of_time",
    "bad_input/test_bad_input.py::test_bad_input_in_a_process_of_its_own",
    "bad_input/test_fuzz_loaders.py",
    "bad_input/test_fuzz_ops.py",
    "cuda_on_host",
    "evaluation/test_report.py::test_same_input_same_bytes_in_another_process",
    "jobs",
    "models/test_architectures.py::test_the_outcome_is_that_of_the_page",
    "ops/test_instruction_sets.py",
    "ops/test_ops_behaviour.py::test_compiles_without_a_graph_break",
    "ops/test_ops_behaviour.py::test_inductor_compiles_the_ranking_loss",
    "ops/test_ops_dispatch.py::test_environment_variable",
    "ops/test_ops_hazards.py::test_settings_may_be_symbols",
    "runs/test_disks.py",
    "runs/test_power.py::test_a_step_goes_on_after_the_power_went",
    "runs/test_resume.py",
    "runs/test_sizes.py",
    "runs/test_studies.py",
    "runs/test_whole_runs.py",
    "safety/test_browser.py",
    "safety/test_hostile_report.py",
    "safety/test_secrets.py",
    "tracking/test_tracked_commands.py",
    "triton_interpreted",
    "test_gpu_targets.py::test_every_row_goes_through_on_the_cpu",
    "test_notebooks.py::test_a_notebook_runs",
    "test_wheel.py",
    "test_readme.py::test_your_own_files_from_start_to_end",
)
"""Folders, files and functions in tests/; all of what is in them."""


def is_slow(place: str) -> bool:
    """place: of a test below tests/, as pytest names it, without parameters."""
    return any(place == slow or place.startswith((f"{slow}/", f"{slow}::")) for slow in SLOW)
