"""The robosuite tasks: instructions, paraphrases and success rules, written for vla_gym.

Success rules restate `_check_success` of robosuite 1.5.2, environments/manipulation/*.py. Colours
and shapes are those of the pictures (materials of the same files and models/assets).
"""

from __future__ import annotations

from vla_gym.suite import Task

HORIZON = 500
"""Control steps after which an episode is truncated (25 s): robosuite's own benchmarks use 500."""

_BIN_RULE = "the {0} is in its own compartment of the right bin and the gripper has moved away"
_PEG_RULE = "the {0} nut is around the {0} peg, low on it, and the gripper has moved away"

_TASKS = (
    Task(
        "Lift",
        "Lift",
        "lift the red cube",
        (
            "pick up the red cube from the table",
            "grasp the small red block and raise it",
            "take the red cube and hold it above the table",
            "get the red block off the table",
        ),
        "the cube's centre is more than 0.04 m above the table top",
        HORIZON,
    ),
    Task(
        "Stack",
        "Stack",
        "stack the red cube on the green cube",
        (
            "put the red block on top of the green block",
            "build a tower with the green cube below and the red cube above",
            "pick up the small red cube and place it on the larger green one",
            "set the red cube down on the green cube and let it go",
        ),
        "the red cube is lifted, touches the green cube and is not held by the gripper",
        HORIZON,
    ),
    Task(
        "Door",
        "Door",
        "open the door",
        (
            "turn the door handle and pull the door open",
            "push the handle down and swing the door open",
            "unlatch the door and open it",
            "use the handle to open the brown door",
        ),
        "the door's hinge is open by more than 0.3 rad",
        HORIZON,
    ),
    Task(
        "NutAssembly",
        "NutAssembly",
        "put the square nut on the square peg and the round nut on the round peg",
        (
            "place each nut on the peg that has its shape",
            "fit both nuts onto their matching pegs",
            "slide the brown nut over the brown peg and the gray nut over the gray peg",
            "assemble the nuts: square onto square, round onto round",
        ),
        "both nuts are around their own pegs, low on them, and the gripper has moved away",
        HORIZON,
    ),
    Task(
        "NutAssemblySingle",
        "NutAssemblySingle",
        "put the nut on the matching peg",
        (
            "fit the nut onto the peg of its shape",
            "pick up the nut and slide it over the peg that fits it",
            "place the nut around the peg with the same shape",
            "find the right peg for the nut and put the nut on it",
        ),
        "the nut drawn at the reset is around its own peg and the gripper has moved away",
        HORIZON,
        ("drawn target",),
    ),
    Task(
        "NutAssemblySquare",
        "NutAssemblySquare",
        "put the square nut on the square peg",
        (
            "slide the square nut over the square peg",
            "fit the brown wooden nut onto the brown peg",
            "pick up the square nut by its handle and place it around the square peg",
            "thread the square nut onto its peg",
        ),
        _PEG_RULE.format("square"),
        HORIZON,
    ),
    Task(
        "NutAssemblyRound",
        "NutAssemblyRound",
        "put the round nut on the round peg",
        (
            "slide the round nut over the round peg",
            "fit the gray metal nut onto the gray peg",
            "pick up the round nut by its handle and place it around the cylinder",
            "thread the round nut onto its peg",
        ),
        _PEG_RULE.format("round"),
        HORIZON,
    ),
    Task(
        "PickPlace",
        "PickPlace",
        "put the milk, the bread, the cereal and the can into their compartments",
        (
            "sort all four groceries into their own compartments of the dark bin",
            "move every item from the light bin to its place in the dark bin",
            "pick up the milk, bread, cereal and can one by one and put each where it belongs",
            "empty the left bin by placing each object in its matching slot on the right",
        ),
        "all four objects are in their own compartments and the gripper has moved away",
        HORIZON,
    ),
    Task(
        "PickPlaceSingle",
        "PickPlaceSingle",
        "put the object into its compartment",
        (
            "move the item from the light bin to its place in the dark bin",
            "pick up the object and drop it in the matching compartment",
            "sort the object into the bin on the right",
            "take the object out of the left bin and put it where it belongs",
        ),
        "the object drawn at the reset is in its own compartment and the gripper has moved away",
        HORIZON,
        ("drawn target",),
    ),
    Task(
        "PickPlaceMilk",
        "PickPlaceMilk",
        "put the milk carton into its compartment",
        (
            "move the milk from the light bin to its place in the dark bin",
            "pick up the carton of milk and drop it in its slot on the right",
            "sort the milk into the compartment that belongs to it",
            "take the milk carton out of the left bin and store it in the right one",
        ),
        _BIN_RULE.format("milk carton"),
        HORIZON,
    ),
    Task(
        "PickPlaceBread",
        "PickPlaceBread",
        "put the bread into its compartment",
        (
            "move the bread from the light bin to its place in the dark bin",
            "pick up the loaf of bread and drop it in its slot on the right",
            "sort the bread into the compartment that belongs to it",
            "take the bread out of the left bin and store it in the right one",
        ),
        _BIN_RULE.format("bread"),
        HORIZON,
    ),
    Task(
        "PickPlaceCereal",
        "PickPlaceCereal",
        "put the cereal box into its compartment",
        (
            "move the cereal from the light bin to its place in the dark bin",
            "pick up the box of cereal and drop it in its slot on the right",
            "sort the red cereal box into the compartment that belongs to it",
            "take the cereal out of the left bin and store it in the right one",
        ),
        _BIN_RULE.format("cereal box"),
        HORIZON,
    ),
    Task(
        "PickPlaceCan",
        "PickPlaceCan",
        "put the can into its compartment",
        (
            "move the soda can from the light bin to its place in the dark bin",
            "pick up the red can and drop it in its slot on the right",
            "sort the can into the compartment that belongs to it",
            "take the can out of the left bin and store it in the right one",
        ),
        _BIN_RULE.format("can"),
        HORIZON,
    ),
    Task(
        "Wipe",
        "Wipe",
        "wipe the dirt off the table",
        (
            "clean the table",
            "rub the brown stain away with the wiper",
            "sweep over the dirty line until the table top is white",
            "remove all the dirt from the table top",
        ),
        "all 100 dirt markers are wiped; the suite itself ends the episode on success, on contact "
        "of the arm with the table and near a joint limit",
        HORIZON,
    ),
    Task(
        "ToolHang",
        "ToolHang",
        "insert the hook into the stand and hang the wrench on it",
        (
            "assemble the frame on the wooden base, then hang the tool from it",
            "put the hook piece upright in its stand and hook the wrench onto it",
            "build the tool stand and hang up the wrench",
            "first fit the hook into the base, then place the wrench on the hook",
        ),
        "the hook stands in its base, and the wrench hangs on it without touching the gripper",
        HORIZON,
    ),
    Task(
        "TwoArmLift",
        "TwoArmLift",
        "lift the pot with both arms",
        (
            "grasp the two handles and raise the red pot",
            "pick up the pot by its green and blue handles, one arm at each",
            "use both arms to carry the pot up from the table and keep it level",
            "raise the pot off the table with both grippers",
        ),
        "the bottom of the pot is more than 0.10 m above the table top",
        HORIZON,
        ("two arms",),
    ),
    Task(
        "TwoArmPegInHole",
        "TwoArmPegInHole",
        "insert the peg into the hole in the plate",
        (
            "put the green peg through the hole of the red plate",
            "bring the arms together so that the peg enters the hole",
            "align the green rod with the square hole and push it in",
            "fit the peg that one arm holds into the plate that the other arm holds",
        ),
        "the peg is within 0.06 m of the hole's axis, inserted, and aligned (cosine over 0.95)",
        HORIZON,
        ("two arms",),
    ),
    Task(
        "TwoArmHandover",
        "TwoArmHandover",
        "hand the hammer over to the other arm",
        (
            "pick up the hammer and pass it to the second arm",
            "lift the hammer with one arm and let the other take it by the handle",
            "transfer the hammer from the first gripper to the second",
            "give the hammer to the other robot",
        ),
        "only the second arm holds the hammer, by its handle, more than 0.10 m above the table",
        HORIZON,
        ("two arms",),
    ),
    Task(
        "TwoArmTransport",
        "TwoArmTransport",
        "move the hammer to the other table's bin and the red cube to the trash bin",
        (
            "take the lid off, pass the hammer across to the target bin and throw away the cube",
            "clear the red trash out of the target bin and bring the hammer there",
            "transport the hammer between the tables and discard the red cube",
            "work together: one arm gets the hammer out of its bin, the other clears the trash "
            "and stores the hammer",
        ),
        "the hammer is in the target bin and the red cube is in the trash bin",
        HORIZON,
        ("two arms",),
    ),
)

TASKS = {task.name: task for task in _TASKS}

DRAWN_TARGETS = {
    "NutAssemblySingle": {"SquareNut": "NutAssemblySquare", "RoundNut": "NutAssemblyRound"},
    "PickPlaceSingle": {
        "Milk": "PickPlaceMilk",
        "Bread": "PickPlaceBread",
        "Cereal": "PickPlaceCereal",
        "Can": "PickPlaceCan",
    },
}
"""Task -> name of the object drawn at a reset -> task whose wordings are then in force."""


def wordings(task: str) -> tuple[str, ...]:
    """Return a task's wordings, canonical first."""
    return (TASKS[task].instruction, *TASKS[task].paraphrases)
