/* A stand-in for libnvidia-ml.so.1 that answers at random: errors, counts, numbers and strings that are no text.
 * HOSTILE_SEED decides all of it; the library itself starts, says how many boards there are, and hands them out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long long state;
static unsigned next(void) { return (state = state * 6364136223846793005ULL + 1442695040888963407ULL) >> 33; }
static int fate(void) { return next() % 4 ? 0 : next() % 30 == 6 ? 999 : 1 + next() % 30; }
static unsigned long long number(unsigned long long usual) { return next() % 3 ? usual : ~0ULL >> next() % 40; }
static int text(char *to, unsigned size, const char *usual) {
    if (next() % 3) snprintf(to, size, "%s", usual);
    else for (unsigned i = 0; i < size; i++) to[i] = i + 1 < size ? next() : 0;
    return fate();
}

int nvmlInitWithFlags(unsigned f) { (void)f; state = strtoull(getenv("HOSTILE_SEED"), 0, 10); return 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return fate(); }
const char *nvmlErrorString(int error) {
    static char said[40];
    (void)error;
    text(said, sizeof said, "an error\033[31m\n::error::of ours");
    return said;
}
int nvmlSystemGetDriverVersion(char *v, unsigned n) { return text(v, n, "580.1"); }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = number(13000); return fate(); }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(i + 1ULL); return 0; }
int nvmlDeviceGetName(void *d, char *v, unsigned n) { (void)d; return text(v, n, "H100\033]0;x\n::error::y"); }
int nvmlDeviceGetUUID(void *d, char *v, unsigned n) {
    char uuid[40];
    snprintf(uuid, sizeof uuid, "GPU-%llu", (unsigned long long)d);
    return text(v, n, uuid);
}
int nvmlDeviceGetPciInfo_v3(void *d, char *p) {
    char bus[32];
    memset(p, 0, 68);
    snprintf(bus, sizeof bus, "00000000:%02X:00.0", (int)(long)d);
    return text(p + 36, 32, bus);
}
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) {
    (void)d;
    m->total = number(80ULL << 30); m->free = number(70ULL << 30); m->used = number(0);
    return fate();
}
int nvmlDeviceGetMemoryInfo_v2(void *d, Memory2 *m) {
    (void)d;
    m->total = number(80ULL << 30); m->free = number(70ULL << 30); m->used = number(0); m->reserved = number(0);
    return fate();
}
int nvmlDeviceGetUtilizationRates(void *d, unsigned *u) { (void)d; u[0] = u[1] = number(0); return fate(); }
int nvmlDeviceGetTemperature(void *d, int s, unsigned *t) { (void)d; (void)s; *t = number(40); return fate(); }
int nvmlDeviceGetPowerUsage(void *d, unsigned *p) { (void)d; *p = number(70000); return fate(); }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *p) { (void)d; *p = number(70000); return fate(); }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) {
    (void)d;
    *a = number(9); *b = number(0);
    return fate();
}
int nvmlDeviceGetMigMode(void *d, unsigned *a, unsigned *b) { (void)d; *a = *b = next() % 3 == 0; return fate(); }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { (void)d; *n = number(7); return fate(); }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **h) {
    *h = (void *)((unsigned long long)d * 100 + i);
    return fate();
}
int nvmlDeviceGetGpuInstanceId(void *d, unsigned *n) { (void)d; *n = number(1); return fate(); }
int nvmlDeviceGetComputeInstanceId(void *d, unsigned *n) { (void)d; *n = number(0); return fate(); }
typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } Running;
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, Running *list) {
    unsigned found = next() % 4;
    (void)d;
    if (found > *n) { *n = found; return 7; }
    for (unsigned i = 0; i < found; i++) { list[i].pid = number(i); list[i].bytes = number(1 << 30); }
    *n = found;
    return fate();
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, Running *list) {
    return nvmlDeviceGetComputeRunningProcesses_v3(d, n, list);
}
int nvmlDeviceGetTotalEccErrors(void *d, int a, int b, unsigned long long *n) {
    (void)d; (void)a; (void)b;
    *n = number(0);
    return fate();
}
int nvmlDeviceGetRemappedRows(void *d, unsigned *a, unsigned *b, unsigned *c, unsigned *e) {
    (void)d;
    *a = *b = *c = *e = number(0);
    return fate();
}
int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *n) { (void)d; *n = number(16); return fate(); }
int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *n) { (void)d; *n = number(16); return fate(); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *n) { (void)d; *n = number(0); return fate(); }
int nvmlDeviceGetNumGpuCores(void *d, unsigned *n) { (void)d; *n = number(10000); return fate(); }
int nvmlDeviceGetMaxClockInfo(void *d, int k, unsigned *n) { (void)d; (void)k; *n = number(2000); return fate(); }
int nvmlDeviceGetNvLinkState(void *d, unsigned i, unsigned *n) { (void)d; *n = 1; return i > 3 ? 2 : fate(); }
int nvmlDeviceGetNvLinkRemoteDeviceType(void *d, unsigned i, unsigned *n) { (void)d; (void)i; *n = number(0); return fate(); }
int nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, unsigned *n) { (void)a; (void)b; *n = number(20); return fate(); }
int nvmlDeviceGetP2PStatus(void *a, void *b, int c, int *n) { (void)a; (void)b; (void)c; *n = number(0); return fate(); }
