/* A driver for a GPU that is not there: memory, streams, events and graphs as the driver library keeps them apart.
 *
 * "Device" memory is host memory that only the device side may be given, so a mixed-up pointer is an error here too. A
 * stream that is captured notes work down and does it at launch. The functions that start with `fake` are for tests.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { HOST = 1, DEVICE = 2, MAPPED = 3 };

typedef void (*Work)(void *);
typedef struct { Work work; void *to, *from; size_t size; } Op;
typedef struct { int capturing, broken, count; Op ops[64]; } Stream;
typedef struct { int count; Op ops[64]; } Graph;
typedef struct { int recorded; struct timespec at; } Event;
typedef struct { void *start; size_t size; int kind; } Block;

static struct { char name[256]; int count, major, minor, multiprocessors, integrated; size_t memory; } gpu = {
    "Fake Orin", 1, 8, 7, 8, 1, (size_t)8 << 30};
static Block blocks[256];
static int live, refuse_capture, launches;
static _Thread_local void *current;
static int context;

void fakeDevice(const char *name, int count, int sm, int multiprocessors, int integrated, size_t memory) {
    strncpy(gpu.name, name, sizeof gpu.name - 1);
    gpu.count = count, gpu.major = sm / 10, gpu.minor = sm % 10;
    gpu.multiprocessors = multiprocessors, gpu.integrated = integrated, gpu.memory = memory;
}
void fakeRefuseCapture(int refuse) { refuse_capture = refuse; }
int fakeLive(void) { return live; }
int fakeLaunches(void) { return launches; }

static Block *find(const void *address, size_t size, int kind) {
    for (int i = 0; i < 256; i++) {
        const char *start = blocks[i].start;
        if (start && (blocks[i].kind & kind) && (const char *)address >= start &&
            (const char *)address + size <= start + blocks[i].size)
            return &blocks[i];
    }
    return NULL;
}
static int keep(size_t size, int kind, void **out) {
    if (!current) return INVALID_CONTEXT;
    if (size > gpu.memory) return OUT_OF_MEMORY;
    for (int i = 0; i < 256; i++)
        if (!blocks[i].start) {
            blocks[i] = (Block){calloc(1, size), size, kind};
            *out = blocks[i].start;
            live++;
            return OK;
        }
    return OUT_OF_MEMORY;
}
static int drop(void *address) {
    Block *block = find(address, 0, HOST | DEVICE);
    if (!block || block->start != address) return INVALID_VALUE;
    free(block->start);
    block->start = NULL;
    live--;
    return OK;
}
static int submit(Stream *stream, Op op) {
    if (!stream) return INVALID_HANDLE;
    if (stream->capturing) {
        if (refuse_capture) { stream->broken = 1; return CAPTURE_UNSUPPORTED; }
        stream->ops[stream->count++] = op;
    } else if (op.work) op.work(NULL);
    else memcpy(op.to, op.from, op.size);
    return OK;
}
/* What the fake TensorRT calls for its kernels: `work` runs now, or when the captured graph is launched. */
int fakeEnqueue(Stream *stream, Work work) { return submit(stream, (Op){work, NULL, NULL, 0}); }
/* Whether the device may touch these bytes. */
int fakeVisible(void *address, size_t size) {
    Block *block = find(address, size, DEVICE);
    return block != NULL && (block->kind != MAPPED || gpu.integrated);
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : gpu.count ? OK : NO_DEVICE; }
int cuDeviceGetCount(int *count) { *count = gpu.count; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal < gpu.count ? OK : INVALID_VALUE; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; strncpy(name, gpu.name, length); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = gpu.multiprocessors; return OK;
    case 18: *value = gpu.integrated; return OK;
    case 75: *value = gpu.major; return OK;
    case 76: *value = gpu.minor; return OK;
    }
    return INVALID_VALUE;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = gpu.memory; return OK; }
int cuDevicePrimaryCtxRetain(void **out, int device) { /* it takes memory of its own */
    (void)device;
    if (!gpu.memory) return OUT_OF_MEMORY;
    context++, *out = &context;
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return context-- > 0 ? OK : INVALID_CONTEXT; }
int cuCtxSetCurrent(void *given) { current = given; return given == &context ? OK : INVALID_CONTEXT; }
int cuMemAlloc_v2(uint64_t *out, size_t size) {
    void *address = NULL;
    int code = keep(size, DEVICE, &address);
    *out = (uint64_t)(uintptr_t)address;
    return code;
}
int cuMemFree_v2(uint64_t address) { return drop((void *)(uintptr_t)address); }
int cuMemHostAlloc(void **out, size_t size, unsigned flags) { return keep(size, flags & 2 ? MAPPED : HOST, out); }
int cuMemFreeHost(void *address) { return drop(address); }
int cuMemHostGetDevicePointer_v2(uint64_t *out, void *host, unsigned flags) {
    *out = (uint64_t)(uintptr_t)host;
    return !flags && find(host, 0, DEVICE) ? OK : INVALID_VALUE;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, void *from, size_t size, Stream *stream) {
    void *device = (void *)(uintptr_t)to;
    if (!find(device, size, DEVICE) || !find(from, size, HOST)) return INVALID_VALUE;
    return submit(stream, (Op){NULL, device, from, size});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
    void *device = (void *)(uintptr_t)from;
    if (!find(device, size, DEVICE) || !find(to, size, HOST)) return INVALID_VALUE;
    return submit(stream, (Op){NULL, to, device, size});
}
int cuStreamCreate(Stream **out, unsigned flags) {
    (void)flags;
    if (!current) return INVALID_CONTEXT;
    *out = calloc(1, sizeof(Stream));
    live++;
    return OK;
}
int cuStreamDestroy_v2(Stream *stream) { free(stream); live--; return OK; }
int cuStreamSynchronize(Stream *stream) { return stream->capturing ? CAPTURE_UNSUPPORTED : OK; }
int cuEventCreate(Event **out, unsigned flags) {
    (void)flags;
    *out = calloc(1, sizeof(Event));
    live++;
    return OK;
}
int cuEventDestroy_v2(Event *event) { free(event); live--; return OK; }
int cuEventRecord(Event *event, Stream *stream) {
    (void)stream;
    event->recorded = 1;
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    return OK;
}
int cuEventElapsedTime(float *ms, Event *start, Event *end) {
    if (!start->recorded || !end->recorded) return NOT_READY;
    *ms = (end->at.tv_sec - start->at.tv_sec) * 1e3f + (end->at.tv_nsec - start->at.tv_nsec) / 1e6f;
    return OK;
}
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    (void)mode;
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    stream->capturing = 1, stream->broken = 0, stream->count = 0;
    return OK;
}
int cuStreamEndCapture(Stream *stream, Graph **out) {
    *out = NULL;
    stream->capturing = 0;
    if (stream->broken) return CAPTURE_INVALIDATED;
    *out = calloc(1, sizeof(Graph));
    (*out)->count = stream->count;
    memcpy((*out)->ops, stream->ops, sizeof stream->ops);
    live++;
    return OK;
}
int cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long flags) {
    (void)flags;
    *out = malloc(sizeof(Graph));
    **out = *graph;
    live++;
    return OK;
}
int cuGraphLaunch(Graph *graph, Stream *stream) {
    launches++;
    for (int i = 0; i < graph->count; i++) submit(stream, graph->ops[i]);
    return OK;
}
int cuGraphExecDestroy(Graph *graph) { free(graph); live--; return OK; }
int cuGraphDestroy(Graph *graph) { free(graph); live--; return OK; }
int cuGetErrorString(int code, const char **text) {
    switch (code) {
    case INVALID_VALUE: *text = "invalid argument"; return OK;
    case OUT_OF_MEMORY: *text = "out of memory"; return OK;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; return OK;
    case INVALID_CONTEXT: *text = "invalid device context"; return OK;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; return OK;
    case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; return OK;
    }
    return INVALID_VALUE;
}
