"""The options of ``pykvm boot``, and those that ``pykvm restore`` has too.

Reached from `cli_boot` and `cli_restore`. Read `options` for what a row means, `cli_devices` and
`pykvm.virtio.config` for what the values of the devices' options mean.
"""

from __future__ import annotations

from pykvm.boot import PROTOCOLS
from pykvm.config import CMDLINE_DEFAULT, MEMORY_DEFAULT
from pykvm.layout import MIB
from pykvm.options import Option

# ── rows that both commands have ─────────────────────────────────────────────────────────────────

SNAPSHOT = Option("--snapshot", "DIR", "where the guest's own request and Ctrl-A s save to")
SNAPSHOT_AT = Option(
    "--snapshot-at",
    "console:REGEX DIR",
    "save to DIR when the console says what REGEX matches; see 'pykvm restore'",
    repeated=True,
    words=2,
)
SNAPSHOT_DISKS = Option(
    "--snapshot-disks",
    "",
    "let snapshots have copies of the disks that the guest may write to, so that what is written "
    "later does not make them useless; the guest stands still meanwhile",
)
DIFF = Option(
    "--diff",
    "DIR",
    "let snapshots have only the pages that changed since the one in DIR was taken, by this run "
    "too: what is saved to DIR is whole",
)
GDB = Option(
    "--gdb",
    "[HOST:]PORT|unix:PATH",
    "listen for a gdb (target remote); HOST is 127.0.0.1 unless given, port 0 a free one",
)
WAIT_GDB = Option("--wait-gdb", "", "run no instruction before gdb says so")
TIMEOUT = Option("--timeout", "S", "end the guest after S seconds (or 10m, 1h), with code 124")
HELP = Option("-h --help", "", "this help")

# ── pykvm boot, pykvm shell ──────────────────────────────────────────────────────────────────────

BOOT_USAGE = """\
usage: pykvm boot [options] [KERNEL] [-- COMMAND…]

Boot KERNEL: bzImage, vmlinux, PVH, multiboot or flat, found by its magic. It is a path or a name
from 'pykvm kernel ls'; without one, $PYKVM_KERNEL, the running kernel's /boot/vmlinuz, the newest
fetched one, else one is fetched. COMMAND is what pykvm's own init runs in a Linux guest; its exit
code becomes ours.

options:
{options}

exit codes:
  0      the guest powered off or rebooted
  n      the guest left with its own code (isa-debug-exit at 0xf4, plain code at 0x5f8)
  124    --timeout
  125    pykvm or the host's KVM failed
  255    the guest crashed: kernel panic, triple fault, dead halt
  128+n  pykvm was ended by signal n

On a terminal, Ctrl-A x ends the machine and Ctrl-A h tells the other keys."""

BOOT = (
    Option("--kernel", "KERNEL", "the same as KERNEL, as an option"),
    Option("--initrd", "FILE", "several are joined", repeated=True),
    Option(
        "--append",
        "TEXT",
        f"the kernel command line, taken as given (default: {CMDLINE_DEFAULT!r} for Linux)",
    ),
    Option(
        "--add",
        "FILE[:GUESTPATH]",
        "put a host file, with the libraries it needs, into pykvm's own initrd",
        repeated=True,
    ),
    Option("--module", "'FILE ARGS'", "a multiboot module with its command line", repeated=True),
    Option("-m --memory", "SIZE", "256M, 2G …", f"{MEMORY_DEFAULT // MIB}M"),
    Option("-c --cpus", "N", "number of vCPUs (default: 1)", "1"),
    Option("--cpu", "host[,+NAME,-NAME…]", "CPU features to add, remove", "host"),
    Option(
        "--protocol",
        "NAME",
        "force how the image is entered: "
        + "; ".join(f"{name} ({gloss})" for name, gloss in PROTOCOLS.items()),
    ),
    Option("--mode", "MODE", "flat binaries: real, protected or long"),
    Option("--load", "GPA", "flat binaries: load address"),
    Option("--entry", "GPA", "flat binaries: first instruction (default: --load)"),
    Option(
        "--serial",
        "WHERE",
        "stdio, none, pty, file:PATH or unix:PATH (default: stdio; with --pipe: none)",
    ),
    Option(
        "--console",
        "NAME",
        "what the guest's console is: serial (default), or virtio (Linux's hvc0, faster for text); "
        "it leads to where --serial says, with what the guest says before it is there",
        "serial",
    ),
    Option(
        "--pipe",
        "",
        "COMMAND's standard input, output and error are pykvm's own, byte for byte, without a "
        "terminal; the kernel's last lines are shown when the guest crashes",
    ),
    Option(
        "--port",
        "NAME=WHERE",
        "a byte channel, /dev/virtio-ports/NAME in the guest; WHERE is unix:PATH (a socket to "
        "connect to), file:PATH (output), fd:N (both ways), stdio, stdin, stdout or stderr",
        repeated=True,
    ),
    Option(
        "--disk",
        "FILE[,format=NAME][,ro][,serial=TEXT][,cache=MODE][,queues=N][,bps=N][,iops=N]"
        "[,overlay=on|PATH][,mount=PATH[,partition=N][,fstype=NAME]]",
        "a file or block device as the next virtio disk; NAME is raw, or qcow2 and others that "
        "qemu-storage-daemon has; in place of FILE, vhost-user=SOCKET[,reconnect=S] is a back end "
        "of yours; MODE is writeback, none (O_DIRECT) or unsafe (a flush does nothing); bps and "
        "iops limit "
        "bytes and requests a second, bps_max and iops_max say how much may pass at once; with "
        "overlay= FILE is only read and may be shared; what the guest writes goes to PATH, or is "
        "dropped at the end (on); pykvm's own init mounts it, or its partition N, at PATH",
        repeated=True,
    ),
    Option(
        "--net",
        "tap=NAME|bridge=NAME|user|socket=PATH[,…]",
        "the next virtio network card, on a TAP (made, as root, if there is none), a bridge, passt "
        "(no rights needed; hostfwd=tcp:8080-:80) or a unix socket (QEMU's stream, or dgram with "
        "peer=PATH); mac=, mtu=, queues=, offload=off; ip=ADDR/BITS, gw=, dns= are what the "
        "guest's init sets, hostip=ADDR/BITS is for a TAP that is made; bps=, iops= as for --disk",
        repeated=True,
    ),
    Option(
        "--fs",
        "HOSTDIR,tag=NAME[,ro][,cache=MODE][,mount=PATH]",
        "a folder of the host, which pykvm's own init mounts at /mnt/NAME or PATH; MODE is auto, "
        "none or always",
        repeated=True,
    ),
    Option(
        "--root",
        "WHAT",
        "the guest's root: a disk, as --disk takes it, a folder or the tag of a --fs; its own init "
        "runs, or COMMAND; --append '… root=/dev/vda1' means the same for the first --disk's",
    ),
    Option("--rng", "", "a virtio entropy source"),
    Option(
        "--vsock",
        "PATH[,cid=N]",
        "sockets between host and guest: a host program connects to the unix socket PATH and says "
        "'CONNECT port'; the guest's connections to port P of CID 2 go to PATH_P",
    ),
    Option("--transport", "NAME", "how virtio devices are reached: pci (default) or mmio", "pci"),
    Option(
        "--balloon",
        "[=SIZE]",
        "a virtio balloon, through which the guest gives back what it has no use for; it does "
        "without SIZE at once",
    ),
    SNAPSHOT,
    SNAPSHOT_AT,
    SNAPSHOT_DISKS,
    DIFF,
    Option(
        "--trace",
        "FILE",
        "every exit, interrupt, kick and console line with its time: .json for ui.perfetto.dev, "
        "or .csv; 'pykvm explain' reads it",
    ),
    Option(
        "--trace-hz",
        "N",
        "how often a vCPU that stays in the guest is looked at, in a trace (default: 100)",
        "100",
    ),
    Option("--stats", "[=live]", "at the end, or while it runs, a table of exits and their cost"),
    Option("--plot", "FILE.svg", "a picture of the boot: its timeline, the guest's memory"),
    GDB,
    WAIT_GDB,
    TIMEOUT,
    Option(
        "--lab",
        "",
        "where this host's KVM cannot run the guest, boot it in the lab (pykvm lab)",
    ),
    Option(
        "--any-host",
        "",
        "boot Linux here even where 'pykvm doctor' says that this host's KVM cannot",
    ),
    HELP,
)
