/* Stands between a process and the system: errors of the disk, and locks that do nothing.
 *
 * SHIM_FOLDER  only paths below it are touched
 * SHIM_WRITE   errno of writes, once SHIM_AFTER bytes have been written
 * SHIM_SYNC    errno of fsync
 * SHIM_OPEN    errno of opening for writing
 * SHIM_NOLOCK  flock says yes to everybody
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long number(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int below(const char *path) {
    const char *folder = getenv("SHIM_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int ours(int fd) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static long written;

static int refused(int fd, size_t count) {
    long error = number("SHIM_WRITE");
    if (!error || !ours(fd)) return 0;
    if (__atomic_add_fetch(&written, (long)count, __ATOMIC_SEQ_CST) <= number("SHIM_AFTER")) return 0;
    errno = (int)error;
    return 1;
}

ssize_t write(int fd, const void *data, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return refused(fd, count) ? -1 : real(fd, data, count);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return refused(fd, count) ? -1 : real(fd, data, count, at);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    long error = number("SHIM_SYNC");
    if (error && ours(fd)) {
        errno = (int)error;
        return -1;
    }
    return real(fd);
}

int flock(int fd, int operation) {
    static int (*real)(int, int);
    if (!real) real = dlsym(RTLD_NEXT, "flock");
    return number("SHIM_NOLOCK") ? 0 : real(fd, operation);
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
    va_end(list);
    long error = number("SHIM_OPEN");
    if (error && (flags & (O_WRONLY | O_RDWR | O_CREAT)) && below(path)) {
        errno = (int)error;
        return -1;
    }
    return real(path, flags, mode);
}
