"""The local way of running: servers, state folder and workers of one run on this machine."""
