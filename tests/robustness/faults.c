/* Number the file operations of a process group below one folder, and fail one of them or kill the group before it.

   Preloaded (LD_PRELOAD) into the processes under test, so it sees Python, libraries and engines alike. The operations
   are those of libc: what a library does by system calls of its own is not seen, and no memory-mapped access is.

     CHAOS_ROOT    the folder whose files count
     CHAOS_STATE   a file of `struct state`, shared with the harness
     CHAOS_LOG     a file that gets one line for each operation while `mode` is COUNT
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, FAIL, KILL };

struct state { /* tests/robustness/faults.py has the same layout */
    int mode, error, group, reserved;
    long target, count, hit;
};

static struct state *state;
static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("CHAOS_ROOT"), *shared = getenv("CHAOS_STATE"), *log = getenv("CHAOS_LOG");
    if (!folder || !shared || !log) return;
    int file = syscall(SYS_openat, AT_FDCWD, shared, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (mapped == MAP_FAILED) return;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    state = mapped;
}

static int is_below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || path[root_length] == 0);
}

/* Write the absolute path of an open file or folder. Return 0 if it has none. */
static int path_of(int file, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlink, link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int absolute(int folder, const char *path, char *full, size_t size) {
    if (!path) return 0;
    if (path[0] == '/') return snprintf(full, size, "%s", path) > 0;
    char base[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else if (!path_of(folder, base, sizeof base)) {
        return 0;
    }
    return snprintf(full, size, "%s/%s", base, path) > 0;
}

/* Count the operation if its path is below the root. Return 1, with errno set, if it must fail. */
static int fails(const char *kind, const char *path) {
    int mode = state->mode;
    if (mode == OFF || getpgrp() != state->group || !is_below(path)) return 0;
    long number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (mode == COUNT) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%s\n", number, kind, path + root_length);
        if (length > 0) syscall(SYS_write, log_file, line, (size_t)length);
        return 0;
    }
    if (number != state->target) return 0;
    state->hit = 1;
    if (mode == KILL) syscall(SYS_kill, 0, SIGKILL);
    errno = state->error;
    return 1;
}

static int fails_at(const char *kind, int folder, const char *path) {
    char full[2 * PATH_MAX];
    return state && state->mode != OFF && absolute(folder, path, full, sizeof full) && fails(kind, full);
}

static int fails_on(const char *kind, int file) {
    char full[PATH_MAX];
    return state && state->mode != OFF && path_of(file, full, sizeof full) && fails(kind, full);
}

static const char *open_kind(int flags) {
    if (flags & O_CREAT) return "create";
    return (flags & O_ACCMODE) == O_RDONLY ? "open" : "open-to-write";
}

#define REAL(result, name, ...)                                                                                        \
    static result (*real)(__VA_ARGS__);                                                                                \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define MODE_OF(last)                                                                                                  \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list more;                                                                                                  \
        va_start(more, last);                                                                                          \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        MODE_OF(flags)                                                                                                 \
        REAL(int, #name, const char *, int, ...);                                                                      \
        return fails_at(open_kind(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode);                              \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        MODE_OF(flags)                                                                                                 \
        REAL(int, #name, int, const char *, int, ...);                                                                 \
        return fails_at(open_kind(flags), folder, path) ? -1 : real(folder, path, flags, mode);                        \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                    \
    FILE *name(const char *path, const char *how) {                                                                    \
        REAL(FILE *, #name, const char *, const char *);                                                               \
        return fails_at(how[0] == 'r' ? "open" : "create", AT_FDCWD, path) ? NULL : real(path, how);                   \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    return fails_at("list", AT_FDCWD, path) ? NULL : real(path);
}

DIR *fdopendir(int file) {
    REAL(DIR *, "fdopendir", int);
    return fails_on("list", file) ? NULL : real(file);
}

/* Operations on a descriptor: result, name, kind, parameters, arguments. The first parameter is the descriptor. */
#define ON_FILE(result, name, kind, parameters, ...)                                                                   \
    result name parameters {                                                                                           \
        static result(*real) parameters;                                                                               \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                               \
        return fails_on(kind, file) ? (result)-1 : real(__VA_ARGS__);                                                  \
    }
ON_FILE(ssize_t, read, "read", (int file, void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pread, "read", (int file, void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pread64, "read", (int file, void *data, size_t size, off64_t at), file, data, size, at)
ON_FILE(ssize_t, readv, "read", (int file, const struct iovec *parts, int count), file, parts, count)
ON_FILE(ssize_t, write, "write", (int file, const void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pwrite, "write", (int file, const void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pwrite64, "write", (int file, const void *data, size_t size, off64_t at), file, data, size, at)
ON_FILE(ssize_t, writev, "write", (int file, const struct iovec *parts, int count), file, parts, count)
ON_FILE(ssize_t, sendfile, "write", (int file, int from, off_t *at, size_t size), file, from, at, size)
ON_FILE(ssize_t, sendfile64, "write", (int file, int from, off64_t *at, size_t size), file, from, at, size)
ON_FILE(int, ftruncate, "truncate", (int file, off_t size), file, size)
ON_FILE(int, ftruncate64, "truncate", (int file, off64_t size), file, size)
ON_FILE(int, fsync, "sync", (int file), file)
ON_FILE(int, fdatasync, "sync", (int file), file)
ON_FILE(int, fchmod, "chmod", (int file, mode_t mode), file, mode)

ssize_t copy_file_range(int from, off64_t *from_at, int file, off64_t *at, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    return fails_on("write", file) ? -1 : real(from, from_at, file, at, size, flags);
}

/* Operations on a path. */
#define AT_PATH(name, kind, folder, path, parameters, ...)                                                             \
    int name parameters {                                                                                              \
        static int(*real) parameters;                                                                                  \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                                                  \
        return fails_at(kind, folder, path) ? -1 : real(__VA_ARGS__);                                                  \
    }
AT_PATH(rename, "rename", AT_FDCWD, old, (const char *old, const char *new), old, new)
AT_PATH(renameat, "rename", a, old, (int a, const char *old, int b, const char *new), a, old, b, new)
AT_PATH(renameat2, "rename", a, old, (int a, const char *old, int b, const char *new, unsigned f), a, old, b, new, f)
AT_PATH(unlink, "remove", AT_FDCWD, path, (const char *path), path)
AT_PATH(unlinkat, "remove", folder, path, (int folder, const char *path, int flags), folder, path, flags)
AT_PATH(remove, "remove", AT_FDCWD, path, (const char *path), path)
AT_PATH(rmdir, "remove-folder", AT_FDCWD, path, (const char *path), path)
AT_PATH(mkdir, "make-folder", AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
AT_PATH(mkdirat, "make-folder", folder, path, (int folder, const char *path, mode_t mode), folder, path, mode)
AT_PATH(link, "link", AT_FDCWD, new, (const char *old, const char *new), old, new)
AT_PATH(linkat, "link", b, new, (int a, const char *old, int b, const char *new, int flags), a, old, b, new, flags)
AT_PATH(symlink, "link", AT_FDCWD, new, (const char *old, const char *new), old, new)
AT_PATH(truncate, "truncate", AT_FDCWD, path, (const char *path, off_t size), path, size)
AT_PATH(chmod, "chmod", AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
AT_PATH(fchmodat, "chmod", folder, path, (int folder, const char *path, mode_t mode, int flags), folder, path, mode, flags)
AT_PATH(utimensat, "times", folder, path, (int folder, const char *path, const struct timespec times[2], int flags), folder, path, times, flags)

/* Python reaches renameat2 through this where its libc has no function for it. */
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_list more;
    va_start(more, number);
    long a = va_arg(more, long), b = va_arg(more, long), c = va_arg(more, long);
    long d = va_arg(more, long), e = va_arg(more, long), f = va_arg(more, long);
    va_end(more);
    if (number == SYS_renameat2 && fails_at("rename", (int)a, (const char *)b)) return -1;
    return real(number, a, b, c, d, e, f);
}
