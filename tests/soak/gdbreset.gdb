# What gdb is told by test_gdb_in_linux.py: boot to a system call, reset, boot again, leave.
break start_kernel
continue
backtrace 1
delete
break __x64_sys_write
continue
backtrace 1
delete
monitor reset
maintenance flush register-cache
info threads
break start_kernel
continue
backtrace 1
delete
hbreak __x64_sys_write
continue
backtrace 1
delete
detach
