"""Virtio devices: one device model, two transports, data planes in C or in Python.

Reached from `machine`, and imported only when a device was asked for. Read `device` first, then one
transport (`mmio` is the smaller one), then one device (`rng` is the smallest). Section numbers are
those of "Virtual I/O Device (VIRTIO) Version 1.2".
"""
