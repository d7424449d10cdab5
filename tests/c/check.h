/* The test harness: a test is a function, RUN() names and runs it, the first failure ends it all.
 *
 * Not assert(): Python's build flags carry -DNDEBUG. Leaving with 77 means skipped, as in automake.
 */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define SKIPPED 77

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: in %s: %s\n", __FILE__, __LINE__, __func__, #condition);       \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Both sides as numbers, for a message that tells them. */
#define CHECK_EQ(left, right)                                                                      \
    do {                                                                                           \
        uint64_t left_ = (uint64_t)(left), right_ = (uint64_t)(right);                             \
        if (left_ != right_) {                                                                     \
            fprintf(stderr, "%s:%d: in %s: %s is %#" PRIx64 ", not %#" PRIx64 "\n", __FILE__,      \
                    __LINE__, __func__, #left, left_, right_);                                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define RUN(test)                                                                                  \
    do {                                                                                           \
        test();                                                                                    \
        puts("ok " #test);                                                                         \
        fflush(stdout);                                                                            \
    } while (0)

#define SKIP(reason)                                                                               \
    do {                                                                                           \
        printf("%s\n", reason);                                                                    \
        exit(SKIPPED);                                                                             \
    } while (0)

#endif
