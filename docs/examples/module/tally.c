// SPDX-License-Identifier: GPL-2.0
/* /dev/tally adds up the numbers that are written to it. See ../test_module.py. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>

static unsigned int limit = 100;
module_param(limit, uint, 0444);
MODULE_PARM_DESC(limit, "the sum may not be more");

static DEFINE_MUTEX(lock);
static unsigned int sum;

static ssize_t tally_read(struct file *file, char __user *to, size_t len, loff_t *at)
{
	char text[16];
	int size;

	mutex_lock(&lock);
	size = scnprintf(text, sizeof(text), "%u\n", sum);
	mutex_unlock(&lock);
	return simple_read_from_buffer(to, len, at, text, size);
}

static ssize_t tally_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	unsigned int number;
	int error = kstrtouint_from_user(from, len, 0, &number);

	if (error)
		return error;
	WARN(!number, "tally: somebody adds nothing\n");
	mutex_lock(&lock);
	if (number > limit - sum)
		error = -EDQUOT;
	else
		sum += number;
	mutex_unlock(&lock);
	return error ? error : len;
}

static const struct file_operations tally_fops = {
	.owner = THIS_MODULE,
	.read = tally_read,
	.write = tally_write,
};

static struct miscdevice tally = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tally",
	.fops = &tally_fops,
};
module_misc_device(tally);

MODULE_DESCRIPTION("Adds up numbers");
MODULE_LICENSE("GPL");
