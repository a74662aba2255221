"""What only a real model shows; run by `make models`, in an environment that has one."""
