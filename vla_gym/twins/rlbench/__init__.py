"""RLBench's tasks in MuJoCo, made of primitives: our own stand-in, not RLBench."""
