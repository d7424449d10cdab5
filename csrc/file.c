/* What Python's os module lacks of the calls on files. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

int pk_file_exchange(const char *one, const char *other)
{
    return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) < 0 ? -errno : 0;
}
