/* Writes down what a process, with all that it starts, does to the files below a folder, for recorded_disk.py to do it
   again up to any moment.

   cc -o recorded_writes recorded_writes.c
   recorded_writes FOLDER LOG PROCESS     says "recording" once it does, and ends when the process does

It stands between the process and the kernel (ptrace): libraries that are written in Rust make their system calls
themselves, past libc. A record is a line, of a write with its bytes behind it, in the order in which calls returned.
Files change in no way that is not recorded: other calls that could do it are refused, and end everything with 99. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/ptrace.h>

#define MAX_TASKS 4096
typedef struct ptrace_syscall_info Info;

/* A thread, and the call that it is in. path, other: of its arguments, whole, "" where they lie elsewhere. */
typedef struct {
    pid_t id;
    long number;
    unsigned long long arguments[6];
    char path[PATH_MAX], other[PATH_MAX];
} Task;

static Task *tasks[MAX_TASKS];
static const char *folder;
static FILE *record_file;
static pid_t program;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "recorded_writes: %s: %s\n", what, detail);
    kill(program, SIGKILL);
    exit(99);
}

static Task *task_of(pid_t id) {
    for (int i = 0; i < MAX_TASKS; i++) {
        if (!tasks[i]) {
            tasks[i] = calloc(1, sizeof(Task));
            tasks[i]->id = id;
        }
        if (tasks[i]->id == id) return tasks[i];
    }
    fail("too many threads", "of all programs together");
    return NULL;
}

static void forget(pid_t id) {
    int last = 0, found = -1;
    for (; last < MAX_TASKS && tasks[last]; last++)
        if (tasks[last]->id == id) found = last;
    if (found < 0) return;
    free(tasks[found]);
    tasks[found] = tasks[last - 1];
    tasks[last - 1] = NULL;
}

static size_t read_memory(pid_t id, unsigned long long at, void *into, size_t count) {
    struct iovec here = {into, count}, there = {(void *)at, count};
    ssize_t done = process_vm_readv(id, &here, 1, &there, 1, 0);
    return done < 0 ? 0 : done;
}

static void read_text(pid_t id, unsigned long long at, char *into) {
    for (size_t n = 0; n < PATH_MAX - 1; n++) /* by the byte: what lies behind the text may not be there to be read */
        if (read_memory(id, at + n, into + n, 1) != 1 || !into[n]) {
            into[n] = 0;
            return;
        }
    into[PATH_MAX - 1] = 0;
}

static int is_inside(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || !path[length]);
}

static void read_link(char *into, const char *form, ...) {
    char link[100];
    va_list arguments;
    va_start(arguments, form);
    vsnprintf(link, sizeof link, form, arguments);
    va_end(arguments);
    ssize_t n = readlink(link, into, PATH_MAX - 1);
    into[n < 0 ? 0 : n] = 0;
}

/* Where an open file lies, "" outside of the folder. */
static void file_of(pid_t id, int number, char *into) {
    read_link(into, "/proc/%d/fd/%d", id, number);
    if (!is_inside(into)) into[0] = 0;
}

static void path_of(pid_t id, int at, unsigned long long text, char *into) {
    char given[PATH_MAX], start[PATH_MAX];
    read_text(id, text, given);
    if (given[0] == '/') {
        snprintf(into, PATH_MAX, "%s", given);
    } else {
        if (at == AT_FDCWD)
            read_link(start, "/proc/%d/cwd", id);
        else
            read_link(start, "/proc/%d/fd/%d", id, at);
        snprintf(into, PATH_MAX, "%.2040s/%.2040s", start, given);
    }
    if (!is_inside(into)) into[0] = 0;
}

static void refuse_file(Task *task, int number, const char *what) {
    file_of(task->id, number, task->path);
    if (task->path[0]) fail(what, task->path);
}

/* Before a call: by the time it returns, the names may mean something else. */
static void entered(Task *task, const Info *info) {
    const unsigned long long *a = info->entry.args;
    task->number = info->entry.nr;
    memcpy(task->arguments, a, sizeof task->arguments);
    task->path[0] = task->other[0] = 0;
    switch (task->number) {
#ifdef SYS_open
    case SYS_open:
    case SYS_creat:
    case SYS_unlink:
    case SYS_rmdir:
    case SYS_mkdir:
        path_of(task->id, AT_FDCWD, a[0], task->path);
        break;
    case SYS_rename:
    case SYS_link:
        path_of(task->id, AT_FDCWD, a[0], task->path);
        path_of(task->id, AT_FDCWD, a[1], task->other);
        break;
    case SYS_symlink:
        path_of(task->id, AT_FDCWD, a[1], task->other);
        break;
#endif
    case SYS_truncate:
        path_of(task->id, AT_FDCWD, a[0], task->path);
        break;
    case SYS_openat:
    case SYS_openat2:
    case SYS_unlinkat:
    case SYS_mkdirat:
        path_of(task->id, a[0], a[1], task->path);
        break;
    case SYS_renameat:
    case SYS_renameat2:
    case SYS_linkat:
        path_of(task->id, a[0], a[1], task->path);
        path_of(task->id, a[2], a[3], task->other);
        break;
    case SYS_symlinkat:
        path_of(task->id, a[1], a[2], task->other);
        break;
    }
}

static long long position(pid_t id, int number) {
    char name[100], line[100];
    long long found = -1;
    snprintf(name, sizeof name, "/proc/%d/fdinfo/%d", id, number);
    FILE *file = fopen(name, "r");
    if (file && fgets(line, sizeof line, file)) sscanf(line, "pos: %lld", &found);
    if (file) fclose(file);
    return found;
}

/* count bytes that were written, ending at `behind`; the buffers are an array of struct iovec in the other's memory. */
static void wrote(Task *task, long long count, unsigned long long parts, int vectors, long long behind) {
    file_of(task->id, task->arguments[0], task->path);
    if (!task->path[0] || count <= 0) return;
    if (strstr(task->path, " (deleted)")) fail("a write to a file without a name", task->path);
    if (behind < 0) behind = position(task->id, task->arguments[0]);
    char *bytes = malloc(count);
    long long have = 0;
    struct iovec part = {(void *)parts, count};
    for (int i = 0; have < count; i++) {
        if (vectors) read_memory(task->id, parts + i * sizeof part, &part, sizeof part);
        long long size = (long long)part.iov_len < count - have ? (long long)part.iov_len : count - have;
        if (read_memory(task->id, (unsigned long long)part.iov_base, bytes + have, size) != (size_t)size)
            fail("memory that cannot be read", task->path);
        have += size;
    }
    fprintf(record_file, "write %lld %lld %s\n", behind - count, count, task->path);
    fwrite(bytes, 1, count, record_file);
    free(bytes);
}

/* After a call that succeeded. */
static void left(Task *task, long long result) {
    const unsigned long long *a = task->arguments;
    int inside = task->path[0] != 0, flags;
    switch (task->number) {
#ifdef SYS_open
    case SYS_open:
    case SYS_creat:
        flags = task->number == SYS_creat ? O_CREAT | O_TRUNC : a[1];
        if (inside) fprintf(record_file, "open %d %s\n", flags, task->path);
        break;
    case SYS_unlink:
    case SYS_rmdir:
        if (inside) fprintf(record_file, "remove %s\n", task->path);
        break;
    case SYS_mkdir:
        if (inside) fprintf(record_file, "mkdir %s\n", task->path);
        break;
    case SYS_rename:
    case SYS_link:
    case SYS_symlink:
#endif
    case SYS_renameat:
    case SYS_renameat2:
    case SYS_linkat:
    case SYS_symlinkat:
        if (!inside && !task->other[0]) break;
        if (!inside || !task->other[0] || (task->number == SYS_renameat2 && a[4]))
            fail("a link, a move between folders, or a rename with flags", inside ? task->path : task->other);
#ifdef SYS_open
        if (task->number == SYS_link) fail("a second name", task->other);
#endif
        if (task->number == SYS_linkat) fail("a second name", task->other);
        fprintf(record_file, "rename %s\t%s\n", task->path, task->other);
        break;
    case SYS_openat:
        if (inside && (a[2] & O_TMPFILE) == O_TMPFILE) fail("a file without a name", task->path);
        if (inside) fprintf(record_file, "open %d %s\n", (int)a[2], task->path);
        break;
    case SYS_openat2:
        if (inside) fail("openat2", task->path);
        break;
    case SYS_unlinkat:
        if (inside) fprintf(record_file, "remove %s\n", task->path);
        break;
    case SYS_mkdirat:
        if (inside) fprintf(record_file, "mkdir %s\n", task->path);
        break;
    case SYS_truncate:
        if (inside) fprintf(record_file, "truncate %lld %s\n", (long long)a[1], task->path);
        break;
    case SYS_ftruncate:
        file_of(task->id, a[0], task->path);
        if (task->path[0]) fprintf(record_file, "truncate %lld %s\n", (long long)a[1], task->path);
        break;
    case SYS_write:
        wrote(task, result, a[1], 0, -1);
        break;
    case SYS_pwrite64:
        wrote(task, result, a[1], 0, a[3] + result);
        break;
    case SYS_writev:
        wrote(task, result, a[1], 1, -1);
        break;
    case SYS_pwritev:
        wrote(task, result, a[1], 1, a[3] + result);
        break;
    case SYS_fsync:
    case SYS_fdatasync:
        file_of(task->id, a[0], task->path);
        if (task->path[0]) fprintf(record_file, "fsync %s\n", task->path);
        break;
    case SYS_mmap:
        if ((a[2] & PROT_WRITE) && (a[3] & MAP_SHARED) && !(a[3] & MAP_ANONYMOUS))
            refuse_file(task, a[4], "memory that is written through to a file");
        break;
    case SYS_sendfile:
    case SYS_fallocate:
        refuse_file(task, a[0], "sendfile or fallocate");
        break;
    case SYS_copy_file_range:
    case SYS_splice:
        refuse_file(task, a[2], "copy_file_range or splice");
        break;
    case SYS_pwritev2:
        refuse_file(task, a[0], "pwritev2");
        break;
    case SYS_io_uring_setup:
        fail("io_uring", "whatever it writes");
        break;
    }
}

static void trace(void) {
    int status;
    pid_t id;
    while ((id = waitpid(-1, &status, __WALL)) > 0) {
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            forget(id);
            if (id != program) continue;
            exit(fclose(record_file) ? 99 : 0);
        }
        int number = WSTOPSIG(status), delivered = 0;
        if (number == (SIGTRAP | 0x80)) {
            Info info;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, id, (void *)sizeof info, &info) > 0) {
                if (info.op == PTRACE_SYSCALL_INFO_ENTRY) entered(task_of(id), &info);
                if (info.op == PTRACE_SYSCALL_INFO_EXIT && !info.exit.is_error) left(task_of(id), info.exit.rval);
            }
        } else if (!(status >> 16)) {
            delivered = number;
        }
        ptrace(PTRACE_SYSCALL, id, 0, (void *)(long)delivered);
    }
}

int main(int count, char **arguments) {
    if (count != 4) return 99;
    folder = arguments[1];
    program = atoi(arguments[3]);
    record_file = fopen(arguments[2], "w");
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (!record_file || ptrace(PTRACE_SEIZE, program, 0, (void *)options) || ptrace(PTRACE_INTERRUPT, program, 0, 0))
        fail("cannot record", strerror(errno));
    puts("recording");
    fflush(stdout);
    trace();
    return 99;
}
