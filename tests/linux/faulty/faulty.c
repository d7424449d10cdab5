// SPDX-License-Identifier: GPL-2.0
/* A module that is at fault as soon as it is loaded, in the way that its parameter names. Reached
 * from agent_cases.py. */
#include <linux/bug.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/string.h>

static char *way = "";
module_param(way, charp, 0444);

static int __init faulty_init(void)
{
	if (!strcmp(way, "warn"))
		WARN(1, "faulty: as asked\n");
	if (!strcmp(way, "oops"))
		*(volatile int *)8 = 1;
	if (!strcmp(way, "bug"))
		BUG();
	if (!strcmp(way, "protection"))
		*(volatile int *)0xdead000000000100 = 1;
	if (!strcmp(way, "hang")) {
		local_irq_disable();
		for (;;)
			cpu_relax();
	}
	return 0;
}
module_init(faulty_init);

static void __exit faulty_exit(void)
{
}
module_exit(faulty_exit);

MODULE_DESCRIPTION("Is at fault");
MODULE_LICENSE("GPL");
