"""One request through a virtqueue, seen from both sides."""

from pykvm import Machine, MachineConfig
from pykvm.guest_programs import path
from pykvm.memory import GuestMemory
from pykvm.virtio.queue import Queue, QueueError, Ring

config = MachineConfig(kernel=path("entropy"), rng=True, transport="mmio")
with Machine(config) as vm:
    print(vm.run(timeout=10).console.decode(), end="")

DESC, AVAIL, USED, BUFFER = 0x1000, 0x2000, 0x3000, 0x4000
WRITE = 2

memory = GuestMemory(64 << 10)


def store(gpa, value, size):
    memory.write(gpa, value.to_bytes(size, "little"))


queue = Queue(memory, Ring(size=2, desc=DESC, avail=AVAIL, used=USED))
print("before:", queue.pop())

store(DESC, BUFFER, 8)  # descriptor 0: address,
store(DESC + 8, 16, 4)  # length,
store(DESC + 12, WRITE, 2)  # flags
store(AVAIL + 4, 0, 2)  # avail.ring[0]: the chain's head
store(AVAIL + 2, 1, 2)  # avail.idx

chain = queue.pop()
print("to read:", chain.out, "to write:", [(hex(gpa), size) for gpa, size in chain.in_])

memory.write(BUFFER, b"sixteen bytes!!!")
queue.push(chain.head, 16)
used = memory.read(USED, 12)
print("used.idx", int.from_bytes(used[2:4], "little"))
print("ring[0]: head", int.from_bytes(used[4:8], "little"), end=", ")
print(int.from_bytes(used[8:12], "little"), "bytes written")

store(DESC + 12, WRITE | 1, 2)  # NEXT, and the next one is itself
store(DESC + 14, 0, 2)
store(AVAIL + 2, 2, 2)
try:
    queue.pop()
except QueueError as error:
    print("refused:", error)
