/* CANN's runtime (acl*) and its collectives (Hccl*), as far as MindSpore needs them to go on: devices that are only
 * numbered, memory that is the host's, streams on which nothing ever runs. Every function returns 0, which is success;
 * what is not here returns 0 and does nothing (emulator.py makes those). The signatures are those by which MindSpore
 * calls them. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "trace.h"

enum { DEVICES = 8, DEVICE_TO_HOST = 2, INVALID_DEVICE = 107001 };

/* What stands for an object that MindSpore only hands back: never looked into. Larger than any of them. */
static char handle[4096];

/* The chip. */

/* EMULATED_SOC: Ascend910B1, which is the default, or Ascend910A. */
const char* aclrtGetSocName(void) {
  const char* soc = getenv("EMULATED_SOC");
  return soc ? soc : "Ascend910B1";
}

/* Eight devices, or those that ASCEND_RT_VISIBLE_DEVICES names: they are counted from 0 anew. */
static int device_count(void) {
  const char* visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
  int count = 1;
  if (!visible) return DEVICES;
  while ((visible = strchr(visible, ',')) != NULL) {
    ++visible;
    ++count;
  }
  return count;
}

/* EMULATED_DEVICE_ERROR: the code with which a driver that does not open the chip answers. */
int aclrtGetDeviceCount(uint32_t* count) {
  const char* error = getenv("EMULATED_DEVICE_ERROR");
  *count = device_count();
  return error ? atoi(error) : 0;
}

int aclrtSetDevice(int32_t device) {
  trace_device(device);
  return device < device_count() ? 0 : INVALID_DEVICE;
}

int aclrtGetDevice(int32_t* device) {
  *device = 0;
  return 0;
}

/* 1 is "this program runs on the host". */
int aclrtGetRunMode(int* mode) {
  *mode = 1;
  return 0;
}

int aclrtGetCurrentContext(void** context) {
  *context = handle;
  return 0;
}

int aclrtCreateContext(void** context, int32_t device) {
  (void)device;
  *context = handle;
  return 0;
}

/* MindSpore logs this message after an error: it must be text. */
const char* aclGetRecentErrMsg(void) { return ""; }

/* Memory: the host's. A device's is reserved and given pages when touched, for MindSpore asks for all of it. */

int aclrtGetMemInfo(int kind, size_t* unused, size_t* total) {
  (void)kind;
  *unused = (size_t)60 << 30;
  *total = (size_t)64 << 30;
  return 0;
}

static int reserve(void** address, size_t size) {
  *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *address == MAP_FAILED;
}

int aclrtMalloc(void** address, size_t size, int policy) {
  (void)policy;
  return reserve(address, size);
}

int aclrtMallocAlign32(void** address, size_t size, int policy) {
  (void)policy;
  return reserve(address, size);
}

/* Virtual memory: it is usable as soon as it is reserved, and mapping it does nothing. */
int aclrtReserveMemAddress(void** address, size_t size, size_t alignment, void* expected, uint64_t flags) {
  (void)alignment, (void)expected, (void)flags;
  return reserve(address, size);
}

int aclrtMallocPhysical(void** physical, size_t size, const void* property, uint64_t flags) {
  (void)size, (void)property, (void)flags;
  *physical = handle;
  return 0;
}

int aclrtMallocHost(void** address, size_t size) {
  *address = malloc(size);
  return *address == NULL;
}

/* Copies are real, so that what was put on the device comes back; no operator has changed it in between. A single byte
 * that is copied back is the truth of a condition, which no operator has computed: it is true. */
static int copy(void* to, const void* from, size_t size, int direction) {
  if (!to || !from) return 0;
  memcpy(to, from, size);
  if (size == 1 && direction == DEVICE_TO_HOST) *(char*)to = 1;
  return 0;
}

int aclrtMemcpy(void* to, size_t room, const void* from, size_t size, int direction) {
  (void)room;
  return copy(to, from, size, direction);
}

int aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t size, int direction, void* stream) {
  (void)room, (void)stream;
  return copy(to, from, size, direction);
}

int aclrtMemset(void* to, size_t room, int32_t value, size_t size) {
  (void)room;
  if (to) memset(to, value, size);
  return 0;
}

int aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t size, void* stream) {
  (void)stream;
  return aclrtMemset(to, room, value, size);
}

/* Streams and events. Each has an address of its own, by which MindSpore tells them apart; an event has always
 * happened, and the time between two is none. */

static int unique(void** object) {
  *object = malloc(64);
  return *object == NULL;
}

int aclrtCreateStream(void** stream) { return unique(stream); }

int aclrtCreateStreamWithConfig(void** stream, uint32_t priority, uint32_t flags) {
  (void)priority, (void)flags;
  return unique(stream);
}

int aclrtCreateEvent(void** event) { return unique(event); }

int aclrtCreateEventWithFlag(void** event, uint32_t flags) {
  (void)flags;
  return unique(event);
}

int aclrtCreateEventExWithFlag(void** event, uint32_t flags) {
  (void)flags;
  return unique(event);
}

int aclrtStreamGetId(void* stream, int32_t* number) {
  (void)stream;
  *number = 0;
  return 0;
}

int aclrtQueryEventStatus(void* event, int* status) {
  (void)event;
  *status = 1;
  return 0;
}

int aclrtQueryEventWaitStatus(void* event, int* status) {
  (void)event;
  *status = 1;
  return 0;
}

int aclrtEventElapsedTime(float* milliseconds, void* start, void* end) {
  (void)start, (void)end;
  *milliseconds = 0;
  return 0;
}

/* The host waits for the device: counted. */

static unsigned long synchronisations;

unsigned long emulator_synchronisations(void) { return __atomic_load_n(&synchronisations, __ATOMIC_SEQ_CST); }

static int synchronise(void) {
  __atomic_fetch_add(&synchronisations, 1, __ATOMIC_SEQ_CST);
  return 0;
}

int aclrtSynchronizeStream(void* stream) {
  (void)stream;
  return synchronise();
}

int aclrtSynchronizeStreamWithTimeout(void* stream, int32_t milliseconds) {
  (void)stream, (void)milliseconds;
  return synchronise();
}

int aclrtSynchronizeDevice(void) { return synchronise(); }

int aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) {
  (void)milliseconds;
  return synchronise();
}

/* Operators. What MindSpore describes them with: the type of a tensor is written down, the rest is not. */

void* aclCreateTensorDesc(int type, int rank, const int64_t* shape, int format) {
  (void)rank, (void)shape, (void)format;
  trace_type(type);
  return handle;
}

void* aclCreateTensor(const int64_t* shape, uint64_t rank, int type) {
  (void)shape, (void)rank;
  trace_type(type);
  return handle;
}

void* aclCreateScalar(void) { return handle; }
void* aclCreateIntArray(void) { return handle; }
void* aclCreateBoolArray(void) { return handle; }
void* aclCreateFloatArray(void) { return handle; }
void* aclCreateTensorList(void) { return handle; }
void* aclCreateScalarList(void) { return handle; }
void* aclCreateDataBuffer(void) { return handle; }
void* aclopCreateAttr(void) { return handle; }

/* How operators of the older interface get memory while they run. */
void* aclrtAllocatorCreateDesc(void) { return handle; }

/* An operator of the older interface is called by its name. (Those of the newer one are functions: preload.cc.) */
int aclopCompileAndExecute(const char* operator) {
  trace_operator(operator);
  return 0;
}

int aclopCompileAndExecuteV2(const char* operator) {
  trace_operator(operator);
  return 0;
}

/* Collectives: nothing is ever sent, but a group begins when all its ranks are there, for a rank that was alone would
 * be done before the others have begun. They meet at a counter in shared memory, of which rank 0 makes the name and
 * MindSpore hands it to the others. */

enum { ROOT_INFO_BYTES = 4108 };

int HcclGetRootInfo(char* information) {
  static int groups;
  memset(information, 0, ROOT_INFO_BYTES);
  snprintf(information, ROOT_INFO_BYTES, "/ascend-emulator-%d-%d", (int)getpid(), groups++);
  return 0;
}

int HcclCommInitRootInfo(uint32_t ranks, const char* information, uint32_t rank, void** group) {
  (void)rank;
  *group = handle;
  const int file = shm_open(information, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(uint32_t)) != 0) return 1;
  uint32_t* arrived = mmap(NULL, sizeof *arrived, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (arrived == MAP_FAILED) return 1;
  if (__atomic_add_fetch(arrived, 1, __ATOMIC_SEQ_CST) == ranks) shm_unlink(information);
  while (__atomic_load_n(arrived, __ATOMIC_SEQ_CST) < ranks) usleep(10000);
  return 0;
}

int HcclCommInitRootInfoConfig(uint32_t ranks, const char* information, uint32_t rank, void* options, void** group) {
  (void)options;
  return HcclCommInitRootInfo(ranks, information, rank, group);
}

int HcclCommInitClusterInfo(const char* table, uint32_t rank, void** group) {
  (void)table, (void)rank;
  *group = handle;
  return 0;
}

int HcclCommInitClusterInfoConfig(const char* table, uint32_t rank, void* options, void** group) {
  (void)table, (void)rank, (void)options;
  *group = handle;
  return 0;
}

int HcclGetCommName(void* group, char* name) {
  (void)group;
  strcpy(name, "hccl_world_group");
  return 0;
}

int HcclGetRankId(void* group, uint32_t* rank) {
  (void)group;
  *rank = 0;
  return 0;
}

int HcclGetRankSize(void* group, uint32_t* ranks) {
  (void)group;
  *ranks = 1;
  return 0;
}
