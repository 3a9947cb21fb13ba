/* A stand-in for NVIDIA's libnvidia-ml.so.1: the few calls cclocal makes, answered from variables of the environment.
 *
 *     cc -shared -fPIC -o libnvidia-ml.so.1 nvml.c
 *     FAKE_NVML="name:total_mib:free_mib;name:…"     free_mib = - : the card tells no memory (a DGX Spark)
 */
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

typedef struct { unsigned long long total, free, used; } memory_t;
enum { OK = 0, NOT_SUPPORTED = 3 };
static char cards[8][3][96];
static unsigned count;

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    char text[1024];
    const char *told = getenv("FAKE_NVML");
    count = 0;
    strncpy(text, told ? told : "", sizeof text - 1);
    text[sizeof text - 1] = 0;
    for (char *end, *card = strtok_r(text, ";", &end); card && count < 8; card = strtok_r(0, ";", &end), count++)
        sscanf(card, "%95[^:]:%95[^:]:%95[^:]", cards[count][0], cards[count][1], cards[count][2]);
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { *handle = cards[i]; return OK; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    strncpy(name, ((char (*)[96])handle)[0], length);
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    char (*card)[96] = handle;
    if (card[2][0] == '-')
        return NOT_SUPPORTED;
    memory->total = strtoull(card[1], 0, 10) << 20;
    memory->free = strtoull(card[2], 0, 10) << 20;
    memory->used = memory->total - memory->free;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *n, void *infos) {
    (void)handle; (void)infos;
    *n = 0;
    return OK;
}
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "error"; }
