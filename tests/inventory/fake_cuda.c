/* A stand-in for libcuda.so.1: two devices, counted allocations. FAKE_CUDA=init or =memory makes that call fail. */
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

static int alive; /* contexts and allocations that nobody has given back */
static long long copied;

static int fails(const char *what) {
    const char *wish = getenv("FAKE_CUDA");
    return wish && !strcmp(wish, what);
}

API int fake_alive(void) { return alive; }
API long long fake_copied(void) { return copied; }
API int cuInit(unsigned flags) { (void)flags; return fails("init") ? 999 : 0; }
API int cuDeviceGetCount(int *n) { *n = 2; return 0; }
API int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
API int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, device ? 0xbb : 0xaa, 16); return 0; }
API int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(long)(device + 1); alive++; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; alive--; return 0; }
API int cuCtxSetCurrent(void *context) { return context ? 0 : 201; }
API int cuMemHostAlloc(void **p, size_t size, unsigned flags) { (void)flags; *p = malloc(size); alive++; return 0; }
API int cuMemFreeHost(void *p) { free(p); alive--; return 0; }
API int cuMemAlloc_v2(unsigned long long *p, size_t size) {
    if (fails("memory")) return 2;
    *p = (unsigned long long)malloc(size);
    alive++;
    return 0;
}
API int cuMemFree_v2(unsigned long long p) { free((void *)p); alive--; return 0; }
API int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t size) {
    memcpy((void *)to, from, size < 4096 ? size : 4096);
    copied += size;
    return 0;
}
