/* A stand-in for libnvidia-ml.so.1: answers for invented boards, described in the file that FAKE_NVML names.
 *
 * One line a thing, "kind key=value key=value …"; an underscore in a name stands for a blank:
 *   system driver=550.54.15 cuda=12040 init=0 count=0 silent=1 (starting never returns) unlinked=1 (nor do links)
 *   board  uuid=GPU-… name=… bus=… total=… used=… reserved=… util=… temp=… power=… limit=… cc=9.0 cores=… clock=…
 *          handle=15 (error of getting the handle) lost=1 memory=3 (error of asking) v2=0 (driver without the
 *          second version of the memory call) mig=0|1 (-1: has none) processes=4 badname=1 links=18 (to a switch)
 *          health, each not supported unless given: ecc=3 retire=1 remap=1 unmapped=1 recover=1 width=8 widest=16 gen=1
 *          newest=5 slowed=64 (a reason for lower clocks), and sick=999 (error of asking for any of them)
 *          silent=1 (asking its name never returns) crash=1 (and ends the process) slow=500 (and takes milliseconds)
 *   mig    board=0 uuid=MIG-… gi=1 ci=0 total=… used=… name=…
 *   proc   board=0 pid=… bytes=… (-1: not available) gi=… kind=c|g
 *   pair   a=0 b=1 level=10 p2p=0 nvlinks=4
 * Numbers of errors are nvml.h's. Everything that is not here answers "not supported" or is not found.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX 64
#define API __attribute__((visibility("default")))

typedef struct {
    char uuid[96], name[96], bus[32];
    unsigned long long total, used, reserved;
    int util, temp, power, limit, major, minor, cores, clock, handle, lost, memory, v2, mig, processes, badname, links;
    int board, gi, ci, is_instance;
    int ecc, retire, remap, unmapped, recover, width, widest, gen, newest, slowed, sick, silent, crash, slow;
} Device;

static Device boards[MAX], instances[MAX];
static int board_count, instance_count, proc_count, pair_count, init_error, count_error, silent, unlinked;
static struct { int board, pid, gi; long long bytes; char kind; } procs[MAX];
static struct { int a, b, level, p2p, nvlinks; } pairs[MAX * MAX];
static char driver[80] = "550.54.15";
static int cuda = 12040;

static void copy(char *to, const char *from, size_t size) {
    snprintf(to, size, "%s", from);
    for (char *c = to; *c; c++) if (*c == '_') *c = ' ';
}

static void set(Device *d, const char *k, const char *v) {
    if (!strcmp(k, "uuid")) snprintf(d->uuid, sizeof d->uuid, "%s", v);
    else if (!strcmp(k, "bus")) snprintf(d->bus, sizeof d->bus, "%s", v);
    else if (!strcmp(k, "name")) copy(d->name, v, sizeof d->name);
    else if (!strcmp(k, "total")) d->total = strtoull(v, 0, 10);
    else if (!strcmp(k, "used")) d->used = strtoull(v, 0, 10);
    else if (!strcmp(k, "reserved")) d->reserved = strtoull(v, 0, 10);
    else if (!strcmp(k, "util")) d->util = atoi(v);
    else if (!strcmp(k, "temp")) d->temp = atoi(v);
    else if (!strcmp(k, "power")) d->power = atoi(v);
    else if (!strcmp(k, "limit")) d->limit = atoi(v);
    else if (!strcmp(k, "cc")) sscanf(v, "%d.%d", &d->major, &d->minor);
    else if (!strcmp(k, "cores")) d->cores = atoi(v);
    else if (!strcmp(k, "clock")) d->clock = atoi(v);
    else if (!strcmp(k, "handle")) d->handle = atoi(v);
    else if (!strcmp(k, "lost")) d->lost = atoi(v);
    else if (!strcmp(k, "memory")) d->memory = atoi(v);
    else if (!strcmp(k, "v2")) d->v2 = atoi(v);
    else if (!strcmp(k, "mig")) d->mig = atoi(v);
    else if (!strcmp(k, "processes")) d->processes = atoi(v);
    else if (!strcmp(k, "badname")) d->badname = atoi(v);
    else if (!strcmp(k, "links")) d->links = atoi(v);
    else if (!strcmp(k, "board")) d->board = atoi(v);
    else if (!strcmp(k, "ecc")) d->ecc = atoi(v);
    else if (!strcmp(k, "retire")) d->retire = atoi(v);
    else if (!strcmp(k, "remap")) d->remap = atoi(v);
    else if (!strcmp(k, "unmapped")) d->unmapped = atoi(v);
    else if (!strcmp(k, "recover")) d->recover = atoi(v);
    else if (!strcmp(k, "width")) d->width = atoi(v);
    else if (!strcmp(k, "widest")) d->widest = atoi(v);
    else if (!strcmp(k, "gen")) d->gen = atoi(v);
    else if (!strcmp(k, "newest")) d->newest = atoi(v);
    else if (!strcmp(k, "slowed")) d->slowed = atoi(v);
    else if (!strcmp(k, "sick")) d->sick = atoi(v);
    else if (!strcmp(k, "silent")) d->silent = atoi(v);
    else if (!strcmp(k, "slow")) d->slow = atoi(v);
    else if (!strcmp(k, "crash")) d->crash = atoi(v);
    else if (!strcmp(k, "gi")) d->gi = atoi(v);
    else if (!strcmp(k, "ci")) d->ci = atoi(v);
}

static void describe(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    board_count = instance_count = proc_count = pair_count = init_error = count_error = silent = unlinked = 0;
    if (!file) { init_error = 12; return; } /* no invented machine: as if there were no library */
    while (fgets(line, sizeof line, file)) {
        char *save, *word = strtok_r(line, " \n", &save), kind[16];
        if (!word) continue;
        snprintf(kind, sizeof kind, "%s", word);
        Device *d = NULL;
        if (!strcmp(kind, "board")) {
            d = &boards[board_count++];
            memset(d, 0, sizeof *d);
            d->v2 = 1; d->mig = -1; d->board = board_count - 1;
            d->ecc = d->retire = d->remap = d->unmapped = d->recover = -1;
            d->width = d->widest = d->gen = d->newest = d->slowed = -1;
        } else if (!strcmp(kind, "mig")) {
            d = &instances[instance_count++];
            memset(d, 0, sizeof *d);
            d->v2 = 1; d->mig = -1; d->is_instance = 1;
        } else if (!strcmp(kind, "proc")) {
            memset(&procs[proc_count], 0, sizeof procs[0]);
            procs[proc_count].kind = 'c'; procs[proc_count++].gi = -1;
        } else if (!strcmp(kind, "pair")) memset(&pairs[pair_count++], 0, sizeof pairs[0]);
        while ((word = strtok_r(NULL, " \n", &save))) {
            char *v = strchr(word, '=');
            if (!v) continue;
            *v++ = 0;
            if (d) set(d, word, v);
            else if (!strcmp(kind, "system")) {
                if (!strcmp(word, "driver")) snprintf(driver, sizeof driver, "%s", v);
                if (!strcmp(word, "cuda")) cuda = atoi(v);
                if (!strcmp(word, "init")) init_error = atoi(v);
                if (!strcmp(word, "count")) count_error = atoi(v);
                if (!strcmp(word, "silent")) silent = atoi(v);
                if (!strcmp(word, "unlinked")) unlinked = atoi(v);
            } else if (!strcmp(kind, "proc")) {
                int n = proc_count - 1;
                if (!strcmp(word, "board")) procs[n].board = atoi(v);
                if (!strcmp(word, "pid")) procs[n].pid = atoi(v);
                if (!strcmp(word, "gi")) procs[n].gi = atoi(v);
                if (!strcmp(word, "bytes")) procs[n].bytes = atoll(v);
                if (!strcmp(word, "kind")) procs[n].kind = *v;
            } else if (!strcmp(kind, "pair")) {
                int n = pair_count - 1;
                if (!strcmp(word, "a")) pairs[n].a = atoi(v);
                if (!strcmp(word, "b")) pairs[n].b = atoi(v);
                if (!strcmp(word, "level")) pairs[n].level = atoi(v);
                if (!strcmp(word, "p2p")) pairs[n].p2p = atoi(v);
                if (!strcmp(word, "nvlinks")) pairs[n].nvlinks = atoi(v);
            }
        }
    }
    fclose(file);
}

static void wait_if(int hangs) { while (hangs) pause(); }
API int nvmlInitWithFlags(unsigned flags) { (void)flags; describe(); wait_if(silent); return init_error; }
API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlShutdown(void) { return 0; }
API const char *nvmlErrorString(int error) { (void)error; return "an invented error"; }

static int text(char *to, unsigned size, const char *from) { snprintf(to, size, "%s", from); return 0; }
API int nvmlSystemGetDriverVersion(char *v, unsigned n) { return text(v, n, driver); }
API int nvmlSystemGetNVMLVersion(char *v, unsigned n) { return text(v, n, "12.550.54.15"); }
API int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = cuda; return 0; }
API int nvmlSystemGetCudaDriverVersion(int *v) { *v = cuda; return 0; }
API int nvmlSystemGetProcessName(unsigned pid, char *v, unsigned n) { (void)pid; return text(v, n, "python"); }
API int nvmlDeviceGetCount_v2(unsigned *n) { *n = board_count; return count_error; }

API int nvmlDeviceGetHandleByIndex_v2(unsigned i, Device **d) {
    if ((int)i >= board_count) return 2;
    *d = &boards[i];
    return boards[i].handle;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, Device **d) {
    for (int i = 0; i < board_count; i++) if (!strcmp(boards[i].uuid, uuid)) { *d = &boards[i]; return boards[i].handle; }
    return 6;
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, Device **d) {
    for (int i = 0; i < board_count; i++) if (!strcmp(boards[i].bus, bus)) { *d = &boards[i]; return boards[i].handle; }
    return 6;
}
API int nvmlDeviceGetIndex(Device *d, unsigned *i) { *i = d->board; return 0; }
API int nvmlDeviceGetName(Device *d, char *v, unsigned n) {
    if (d->lost) return 15;
    wait_if(d->silent);
    if (d->crash) abort();
    if (d->slow) usleep(d->slow * 1000);
    if (!d->name[0]) return 3;
    return text(v, n, d->badname ? "\xff\xfe" : d->name);
}
API int nvmlDeviceGetUUID(Device *d, char *v, unsigned n) { return text(v, n, d->uuid); }
API int nvmlDeviceGetSerial(Device *d, char *v, unsigned n) { (void)d; return text(v, n, "0"); }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
API int nvmlDeviceGetPciInfo_v3(Device *d, Pci *p) {
    memset(p, 0, sizeof *p);
    if (!d->bus[0]) return 3;
    text(p->bus_id, sizeof p->bus_id, d->bus);
    sscanf(d->bus, "%x:%x:%x", &p->domain, &p->bus, &p->device);
    return 0;
}
API int nvmlDeviceGetPciInfo_v2(Device *d, Pci *p) { return nvmlDeviceGetPciInfo_v3(d, p); }

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
static int memory_error(Device *d) { return d->lost ? 15 : d->memory; }
API int nvmlDeviceGetMemoryInfo(Device *d, Memory *m) {
    /* as since driver 510, what the driver keeps for itself counts as used */
    m->total = d->total; m->used = d->used + d->reserved; m->free = d->total - d->used - d->reserved;
    return memory_error(d);
}
API int nvmlDeviceGetMemoryInfo_v2(Device *d, Memory2 *m) {
    if (!d->v2) return 13;
    m->total = d->total; m->used = d->used; m->reserved = d->reserved; m->free = d->total - d->used - d->reserved;
    return memory_error(d);
}

static int of_board(Device *d) { return d->lost ? 15 : d->is_instance ? 3 : 0; }
API int nvmlDeviceGetUtilizationRates(Device *d, unsigned *u) { u[0] = u[1] = d->util; return of_board(d); }
API int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *t) { (void)sensor; *t = d->temp; return of_board(d); }
API int nvmlDeviceGetPowerUsage(Device *d, unsigned *p) { *p = d->power; return of_board(d); }
API int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *p) { *p = d->limit; return of_board(d); }
API int nvmlDeviceGetPowerManagementLimit(Device *d, unsigned *p) { *p = d->limit; return of_board(d); }
API int nvmlDeviceGetFanSpeed(Device *d, unsigned *f) { *f = 30; return of_board(d); }
API int nvmlDeviceGetPerformanceState(Device *d, int *s) { *s = 0; return of_board(d); }
API int nvmlDeviceGetDisplayActive(Device *d, int *s) { *s = 0; return of_board(d); }
API int nvmlDeviceGetPersistenceMode(Device *d, int *s) { *s = 1; return of_board(d); }
API int nvmlDeviceGetComputeMode(Device *d, int *s) { *s = 0; return of_board(d); }
API int nvmlDeviceGetEncoderUtilization(Device *d, unsigned *u, unsigned *us) { *u = 0; *us = 1000; return of_board(d); }
API int nvmlDeviceGetDecoderUtilization(Device *d, unsigned *u, unsigned *us) { *u = 0; *us = 1000; return of_board(d); }
static int healthy(Device *d, int fact) { return of_board(d) ? of_board(d) : d->sick ? d->sick : fact < 0 ? 3 : 0; }
API int nvmlDeviceGetTotalEccErrors(Device *d, int e, int c, unsigned long long *n) {
    *n = e == 1 && c == 0 ? d->ecc : 0; /* uncorrected, volatile */
    return healthy(d, d->ecc);
}
API int nvmlDeviceGetRetiredPagesPendingStatus(Device *d, int *s) { *s = d->retire; return healthy(d, d->retire); }
API int nvmlDeviceGetRemappedRows(Device *d, unsigned *a, unsigned *b, unsigned *pending, unsigned *failed) {
    *a = *b = 0; *pending = d->remap > 0; *failed = d->unmapped > 0;
    return healthy(d, d->remap > d->unmapped ? d->remap : d->unmapped);
}
typedef struct {
    unsigned id, scope; long long timestamp, latency; int type, error;
    union { double d; unsigned ui; unsigned long long ull; } value;
} Field;
API int nvmlDeviceGetFieldValues(Device *d, int count, Field *f) {
    for (int i = 0; i < count; i++) {
        f[i].error = f[i].id == 230 ? healthy(d, d->recover) : 2;
        f[i].value.ui = d->recover;
    }
    return of_board(d);
}
API int nvmlDeviceGetCurrPcieLinkWidth(Device *d, unsigned *n) { *n = d->width; return healthy(d, d->width); }
API int nvmlDeviceGetMaxPcieLinkWidth(Device *d, unsigned *n) { *n = d->widest; return healthy(d, d->widest); }
API int nvmlDeviceGetCurrPcieLinkGeneration(Device *d, unsigned *n) { *n = d->gen; return healthy(d, d->gen); }
API int nvmlDeviceGetMaxPcieLinkGeneration(Device *d, unsigned *n) { *n = d->newest; return healthy(d, d->newest); }
API int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *n) {
    *n = d->slowed;
    return healthy(d, d->slowed);
}
API int nvmlDeviceGetDriverModel(Device *d, int *now, int *next) { (void)d; (void)now; (void)next; return 3; }
API int nvmlDeviceGetDriverModel_v2(Device *d, int *now, int *next) { (void)d; (void)now; (void)next; return 3; }
API int nvmlDeviceGetNumGpuCores(Device *d, unsigned *n) { *n = d->cores; return d->cores ? of_board(d) : 3; }
API int nvmlDeviceGetMaxClockInfo(Device *d, int k, unsigned *c) { (void)k; *c = d->clock; return of_board(d); }
API int nvmlDeviceGetClockInfo(Device *d, int k, unsigned *c) { (void)k; *c = d->clock; return of_board(d); }
API int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
    *major = d->major; *minor = d->minor;
    return of_board(d);
}
API int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *next) {
    if (d->mig < 0) return 3;
    *now = *next = d->mig;
    return of_board(d);
}
API int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *n) { *n = d->mig < 0 ? 0 : 7; return 0; }
API int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned place, Device **found) {
    int seen = 0;
    for (int i = 0; i < instance_count; i++)
        if (instances[i].board == d->board && seen++ == (int)place) { *found = &instances[i]; return 0; }
    return 6;
}
API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *d, Device **b) { *b = &boards[d->board]; return 0; }
API int nvmlDeviceIsMigDeviceHandle(Device *d, unsigned *is) { *is = d->is_instance; return 0; }
API int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *n) { *n = d->gi; return d->is_instance ? 0 : 3; }
API int nvmlDeviceGetComputeInstanceId(Device *d, unsigned *n) { *n = d->ci; return d->is_instance ? 0 : 3; }

typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } Running;
static int running(Device *d, unsigned *count, Running *list, char kind) {
    unsigned room = *count, found = 0;
    if (d->lost) return 15;
    if (d->processes) return d->processes;
    for (int i = 0; i < proc_count; i++) {
        if (procs[i].board != d->board || procs[i].kind != kind) continue;
        if (d->is_instance && procs[i].gi != d->gi) continue;
        if (list && found < room) {
            list[found].pid = procs[i].pid;
            list[found].bytes = (unsigned long long)procs[i].bytes;
            list[found].gi = list[found].ci = procs[i].gi;
        }
        found++;
    }
    *count = found;
    return found > room ? 7 : 0;
}
API int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *n, Running *l) { return running(d, n, l, 'c'); }
API int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *d, unsigned *n, Running *l) { return running(d, n, l, 'g'); }

static int pair_of(Device *a, Device *b) {
    for (int i = 0; i < pair_count; i++)
        if ((pairs[i].a == a->board && pairs[i].b == b->board) || (pairs[i].a == b->board && pairs[i].b == a->board)) return i;
    return -1;
}
API int nvmlDeviceGetTopologyCommonAncestor(Device *a, Device *b, unsigned *level) {
    int p = pair_of(a, b);
    wait_if(unlinked);
    if (a->lost || b->lost) return 15;
    if (p < 0) return 3;
    *level = pairs[p].level;
    return 0;
}
API int nvmlDeviceGetP2PStatus(Device *a, Device *b, unsigned capability, unsigned *status) {
    int p = pair_of(a, b);
    (void)capability;
    if (a->lost || b->lost) return 15;
    if (p < 0) return 3;
    *status = pairs[p].p2p;
    return 0;
}
/* a board's links: first those to each other board, then those to the switch */
static int link_end(Device *d, int link, Device **end) {
    for (int i = 0; i < pair_count; i++) {
        if (pairs[i].a != d->board && pairs[i].b != d->board) continue;
        if (link < pairs[i].nvlinks) {
            *end = &boards[pairs[i].a == d->board ? pairs[i].b : pairs[i].a];
            return 1;
        }
        link -= pairs[i].nvlinks;
    }
    *end = NULL;
    return link < d->links;
}
API int nvmlDeviceGetNvLinkState(Device *d, unsigned link, unsigned *active) {
    Device *end;
    if (d->lost) return 15;
    if (!link_end(d, link, &end)) return 2;
    *active = 1;
    return 0;
}
API int nvmlDeviceGetNvLinkRemoteDeviceType(Device *d, unsigned link, unsigned *type) {
    Device *end;
    if (!link_end(d, link, &end)) return 2;
    *type = end ? 0 : 2;
    return 0;
}
API int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *d, unsigned link, Pci *p) {
    Device *end;
    if (!link_end(d, link, &end) || !end) return 2;
    return nvmlDeviceGetPciInfo_v3(end, p);
}
