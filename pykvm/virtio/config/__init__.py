"""What the virtio options of the command line mean, a module for each: ``--disk`` is `disk`.

Reached from `cli_boot`, and from users' code that fills `MachineConfig`. Nothing of the host is
touched here: the device opens what its configuration names. `words` takes an option's value apart.
"""
