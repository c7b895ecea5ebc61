// NVIDIA's libraries in the smallest form that runs our kernels on a machine without a GPU: the driver, NVRTC, cuBLAS, cuBLASLt and NCCL in
// one file, loaded under their names from a folder that CUDA_LIB_DIR points at.
//
//   g++ -std=c++17 -O2 -shared -fPIC -DKERNELS='"…/kernels/emulator"' emulator.cpp -o libcuda.so.1      and links to it named
//   libnvrtc.so.13, libcublas.so.13, libcublasLt.so.13, libnccl.so.2: links, not copies, each of which would have streams of its own
//
// "Device memory" is heap memory: filled with NaN when it is handed out, fenced on both sides, looked at when it is given back.
// "Compiling" is g++ with emulator.h, "a module" the library that comes out, "a launch" runs at once. A copy into page-locked memory arrives
// only when somebody waits for it, so that who reads too early reads NaN. It proves that kernels
// and the code that starts them agree and are right; it says nothing about speed, nor about what only hardware does.
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

typedef unsigned long long Address;
#define API extern "C" __attribute__((visibility("default"))) int

// ---- driver ------------------------------------------------------------------------------------------------------------
static const size_t FENCE = 256;
static std::map<Address, size_t> allocations;
// What was given back lies at rest until the pool is trimmed, and is never found again before that: nothing is more torn to pieces.
static size_t in_use = 0, most_in_use = 0, at_rest = 0;
static const size_t TOTAL = size_t(8) << 30;
// Several ranks are threads of one process in the tests. Held by whatever touches what stands here; kernels run one at a time.
static std::mutex ours;
#define ALONE std::unique_lock<std::mutex> alone(ours)

// What a stream waits for, sums over ranks alone: everything else is done when it comes onto it.
struct Sum {
  size_t count;
  int type;
  std::vector<char*> at;                 // by rank; none has not come
  std::vector<std::vector<char>> given;  // what lay there
  std::vector<bool> broken_off;
  bool done = false;
};
struct Waits {
  std::shared_ptr<Sum> sum;
  int rank;
  bool over() const { return sum->done || sum->broken_off[rank]; }
};
struct Stream {
  std::vector<Waits> waits;
  int rank = -1; // of the run whose sums it makes
  bool is_through() {
    waits.erase(std::remove_if(waits.begin(), waits.end(), [](const Waits& one) { return one.over(); }), waits.end());
    return waits.empty();
  }
};
static std::condition_variable moved; // some sum is over
// Alone, and behind all that is on a stream: others go on meanwhile. A driver would let the caller go, and not what he brings.
#define BEHIND(stream) \
  ALONE;               \
  moved.wait(alone, [&] { return !stream || ((Stream*)stream)->is_through(); })
// The memory that one rank is refused, when it asks for it and when it asks again.
static struct {
  int rank = -1;
  size_t above = 0;
  int times = 0;
} refusal;
static int faulted = -1; // the rank whose device answers no more

// Copies out of page-locked memory that are on the stream with nothing behind them yet: the memory may still be read, and what is written there
// meanwhile is what arrives.
struct Leaving {
  void* to;
  const void* from;
  size_t bytes;
};
static std::deque<Leaving> leaving;
static void catch_up() {
  for (; !leaving.empty(); leaving.pop_front()) memcpy(leaving.front().to, leaving.front().from, leaving.front().bytes);
}

// Page-locked memory, and the copies into it that nobody has waited for, in the order of the stream.
struct Late {
  char* to;
  std::vector<char> bytes;
};
static std::map<char*, size_t> locked;
static std::deque<Late> late;
static size_t arrived = 0; // copies before those

static bool is_locked(char* at) {
  auto next = locked.upper_bound(at);
  return next != locked.begin() && at < std::prev(next)->first + std::prev(next)->second;
}
// Lets copies arrive until there were so many.
static void arrive(size_t many) {
  for (; arrived < many && !late.empty(); arrived++, late.pop_front())
    memcpy(late.front().to, late.front().bytes.data(), late.front().bytes.size());
}
static void arrive_all() {
  catch_up();
  arrive(arrived + late.size());
}

API cuInit(unsigned) {
  mallopt(M_MMAP_THRESHOLD, 1 << 30); // what is given back is asked for again at once
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  return 0;
}
API cuDriverGetVersion(int* version) { return *version = 13000, 0; }
API cuDeviceGetCount(int* count) { return *count = 1, 0; }
API cuDeviceGet(int* device, int) { return *device = 0, 0; }
API cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "emulated GPU"), 0; }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = TOTAL, 0; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 75: *value = 9; break;          // compute capability, major
    case 76: *value = 0; break;          // and minor
    case 16: *value = 4; break;          // multiprocessors
    case 97: *value = 227 << 10; break;  // shared memory a block may opt into
    case 115: *value = 1; break;         // memory pools
    default: *value = 0;
  }
  return 0;
}
API cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)1, 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuCtxSynchronize() {
  ALONE;
  return arrive_all(), 0;
}
API cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = TOTAL - in_use - at_rest, *total = TOTAL, 0; }
API cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = (void*)1, 0; }
static const int RESERVED = 5, USED_HIGH = 8; // CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, _USED_MEM_HIGH
API cuMemPoolTrimTo(void*, size_t) {
  ALONE;
  return at_rest = 0, 0;
}
API cuMemPoolSetAttribute(void*, int attribute, void*) {
  if (attribute == USED_HIGH) most_in_use = in_use;
  return 0;
}
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
  if (attribute != RESERVED && attribute != USED_HIGH) return 1;
  return *(uint64_t*)value = attribute == RESERVED ? in_use + at_rest : most_in_use, 0;
}
API cuStreamCreate(void** stream, unsigned) { return *stream = new Stream(), 0; }
API cuStreamDestroy_v2(void* stream) { return delete (Stream*)stream, 0; }
API cuStreamSynchronize(void* stream) {
  BEHIND(stream);
  return arrive_all(), 0;
}
API cuStreamWaitEvent(void*, void*, unsigned) { return 0; }
struct Event {
  timespec at;
  size_t behind; // how many copies
  bool recorded, asked; // asked for since
  Stream sums;   // and which of them
};
API cuEventCreate(void** event, unsigned) { return *event = new Event(), 0; }
API cuEventDestroy_v2(void* event) { return delete (Event*)event, 0; }
API cuEventRecord(void* event, void* stream) {
  ALONE;
  if (stream) ((Event*)event)->sums = *(Stream*)stream;
  ((Event*)event)->behind = arrived + late.size(), ((Event*)event)->recorded = true, ((Event*)event)->asked = false;
  return clock_gettime(CLOCK_MONOTONIC, &((Event*)event)->at), 0;
}
API cuEventSynchronize(void* event) {
  if (!((Event*)event)->recorded) return 0;
  Stream* sums = &((Event*)event)->sums;
  BEHIND(sums);
  catch_up();
  return arrive(((Event*)event)->behind), 0;
}
API cuEventQuery(void* event) {
  ALONE;
  if (!((Event*)event)->recorded) return 0;
  if (!((Event*)event)->sums.is_through() || !((Event*)event)->asked) return ((Event*)event)->asked = true, 600; // CUDA_ERROR_NOT_READY
  catch_up();
  return arrive(((Event*)event)->behind), 0;
}
API cuEventElapsedTime_v2(float* milliseconds, void* a, void* b) {
  timespec *from = &((Event*)a)->at, *to = &((Event*)b)->at;
  *milliseconds = float(double(to->tv_sec - from->tv_sec) * 1e3 + double(to->tv_nsec - from->tv_nsec) * 1e-6);
  return 0;
}
API cuEventElapsedTime(float* milliseconds, void* a, void* b) { return cuEventElapsedTime_v2(milliseconds, a, b); }
API cuGetErrorName(int, const char** text) { return *text = "an error of the emulator", 0; }
API cuGetErrorString(int, const char** text) { return *text = "an error of the emulator", 0; }

API cuMemAllocAsync(Address* at, size_t bytes, void* stream) {
  ALONE;
  if (stream && ((Stream*)stream)->rank == refusal.rank && refusal.rank >= 0 && bytes >= refusal.above) {
    if (--refusal.times == 0) refusal.rank = -1;
    return 2;
  }
  if (bytes > TOTAL - in_use - at_rest) return 2; // CUDA_ERROR_OUT_OF_MEMORY
  char* memory = (char*)aligned_alloc(256, (bytes + 2 * FENCE + 255) / 256 * 256);
  memset(memory, 0xff, bytes + 2 * FENCE);
  *at = Address(memory + FENCE);
  allocations[*at] = bytes;
  in_use += bytes;
  if (in_use > most_in_use) most_in_use = in_use;
  return 0;
}
API cuMemFreeAsync(Address at, void* stream) {
  BEHIND(stream);
  catch_up();
  auto found = allocations.find(at);
  if (found == allocations.end()) return 1;
  const unsigned char* memory = (const unsigned char*)at;
  for (size_t i = 0; i < FENCE; i++)
    if (memory[i - FENCE] != 0xff || memory[found->second + i] != 0xff) {
      fprintf(stderr, "emulator: a kernel wrote outside a buffer of %zu bytes\n", found->second);
      abort();
    }
  in_use -= found->second, at_rest += found->second;
  free((void*)(at - FENCE));
  allocations.erase(found);
  return 0;
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
  BEHIND(stream);
  if (is_locked((char*)from)) return leaving.push_back({(void*)to, from, bytes}), 0;
  catch_up();
  return memcpy((void*)to, from, bytes), 0;
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
  BEHIND(stream);
  if (stream && faulted >= 0 && ((Stream*)stream)->rank == faulted) return 700; // CUDA_ERROR_ILLEGAL_ADDRESS
  catch_up();
  if (is_locked((char*)to)) {
    late.push_back({(char*)to, std::vector<char>((char*)from, (char*)from + bytes)});
    return 0;
  }
  arrive_all(); // for any other memory the driver waits
  return memcpy(to, (void*)from, bytes), 0;
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
  ALONE;
  *at = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(*at, 0xff, bytes);
  return locked[(char*)*at] = bytes, 0;
}
API cuMemFreeHost(void* at) {
  ALONE;
  for (const Leaving& copy : leaving)
    if (copy.from >= at && copy.from < (char*)at + locked[(char*)at]) {
      fprintf(stderr, "emulator: page-locked memory was given back with a copy out of it on its way\n");
      abort();
    }
  for (const Late& copy : late)
    if (copy.to >= (char*)at && copy.to < (char*)at + locked[(char*)at]) {
      fprintf(stderr, "emulator: page-locked memory was given back with a copy into it on its way\n");
      abort();
    }
  locked.erase((char*)at);
  return free(at), 0;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
  BEHIND(stream);
  catch_up();
  return memmove((void*)to, (void*)from, bytes), 0;
}
API cuMemsetD8Async(Address at, unsigned char value, size_t bytes, void* stream) {
  BEHIND(stream);
  catch_up();
  return memset((void*)at, value, bytes), 0;
}

struct Function {
  void (*kernel)(void**);
  void (*run)(void (*)(void**), const unsigned*, unsigned, void**);
};
API cuModuleLoadData(void** module, const void* image) {
  *module = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "emulator: %s\n", dlerror());
  return *module ? 0 : 200; // CUDA_ERROR_INVALID_IMAGE
}
API cuModuleUnload(void*) { return 0; }
API cuModuleGetFunction(void** function, void* module, const char* name) {
  Function found = {(void (*)(void**))dlsym(module, name), (decltype(Function::run))dlsym(module, "emulator_run")};
  if (!found.kernel || !found.run) return 500; // CUDA_ERROR_NOT_FOUND
  *function = new Function(found);
  return 0;
}
API cuFuncSetAttribute(void*, int, int) { return 0; }
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || bx * by * bz > 1024) return 1;
  BEHIND(stream);
  catch_up();
  unsigned shape[6] = {gx, gy, gz, bx, by, bz};
  ((Function*)function)->run(((Function*)function)->kernel, shape, shared, arguments);
  return 0;
}

// ---- NVRTC -------------------------------------------------------------------------------------------------------------
struct Program {
  std::map<std::string, std::string> files;
  std::string image, log;
};

API nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
API nvrtcCreateProgram(Program** program, const char* source, const char*, int count, const char* const* headers,
                       const char* const* names) {
  *program = new Program;
  (*program)->files["kernel.cpp"] = source;
  for (int i = 0; i < count; i++) (*program)->files[names[i]] = headers[i];
  return 0;
}
// Where libraries are made, until this process ends; and those that are, by all that went into them.
struct Made {
  std::string place;
  std::map<std::string, std::string> images;
  Made() {
    char folder[] = "/tmp/lorikeet-emulator-XXXXXX";
    if (mkdtemp(folder)) place = folder;
  }
  ~Made() {
    std::error_code nothing_to_be_done;
    if (!place.empty()) std::filesystem::remove_all(place, nothing_to_be_done);
  }
};
static Made made;

API nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  std::string line = "g++ -std=c++17 -O2 -shared -fPIC -Wno-unknown-pragmas -DLORIKEET_EMULATOR -I" KERNELS;
  for (int i = 0; i < count; i++)
    if (!strncmp(options[i], "-D", 2)) line += std::string(" ") + options[i];
  std::string known = line, place;
  for (auto& file : program->files) known += '\0' + file.first + '\0' + file.second;
  {
    ALONE;
    auto found = made.images.find(known);
    if (found != made.images.end()) return program->image = found->second, 0;
    static int next = 0;
    place = made.place + "/" + std::to_string(next++);
  }
  if (!std::filesystem::create_directory(place)) return 6;
  for (auto& file : program->files) std::ofstream(place + "/" + file.first) << file.second;
  program->image = place + "/kernel.so";
  line += " -I" + place + " -o " + program->image + " " + place + "/kernel.cpp 2> " + place + "/log";
  int failed = system(line.c_str());
  std::stringstream log;
  log << std::ifstream(place + "/log").rdbuf();
  program->log = log.str();
  if (failed) return 6; // NVRTC_ERROR_COMPILATION
  ALONE;
  return made.images[known] = program->image, 0;
}
API nvrtcGetCUBINSize(Program* program, size_t* size) { return *size = program->image.size() + 1, 0; }
API nvrtcGetCUBIN(Program* program, char* image) { return memcpy(image, program->image.c_str(), program->image.size() + 1), 0; }
API nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, 0; }
API nvrtcGetProgramLog(Program* program, char* log) { return memcpy(log, program->log.c_str(), program->log.size() + 1), 0; }
API nvrtcDestroyProgram(Program** program) { return delete *program, *program = nullptr, 0; }

// ---- cuBLAS ------------------------------------------------------------------------------------------------------------
API cublasCreate_v2(void*** handle) { return *handle = new void*(nullptr), 0; } // all that it holds is its stream
API cublasDestroy_v2(void** handle) { return delete handle, 0; }
API cublasSetStream_v2(void** handle, void* stream) { return *handle = stream, 0; }
API cublasSetMathMode(void*, int mode) { return mode == 16 ? 0 : 7; } // CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION

static const int BF16 = 14, F32 = 0; // cudaDataType
static float get(const void* at, int type, size_t i) {
  if (type == F32) return ((const float*)at)[i];
  uint32_t bits = uint32_t(((const uint16_t*)at)[i]) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static void put(void* at, int type, size_t i, float x) {
  if (type == F32) {
    ((float*)at)[i] = x;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff0000 : bits + 0x7fff + ((bits >> 16) & 1);
  ((uint16_t*)at)[i] = uint16_t(bits >> 16);
}
// One product in their order of columns first.
struct Factors {
  int m, n, k;
  bool turned[2];
  size_t stride[3];
  int type[3];
};
static void multiply(const Factors& f, float scale, const void* a, const void* b, float keep, const void* c, void* d) {
  for (int j = 0; j < f.n; j++)
    for (int i = 0; i < f.m; i++) {
      float sum = 0;
      for (int l = 0; l < f.k; l++)
        sum += get(a, f.type[0], f.turned[0] ? i * f.stride[0] + l : l * f.stride[0] + i) *
               get(b, f.type[1], f.turned[1] ? l * f.stride[1] + j : j * f.stride[1] + l);
      size_t at = j * f.stride[2] + i;
      put(d, f.type[2], at, scale * sum + (keep == 0 ? 0 : keep * get(c, f.type[2], at)));
    }
}
API cublasGemmEx(void** handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda,
                 const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int, int) {
  if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7; // CUBLAS_STATUS_INVALID_VALUE
  if (a_type != b_type || (c_type != F32 && c_type != a_type)) return 15; // CUBLAS_STATUS_NOT_SUPPORTED
  Factors factors = {m, n, k, {ta != 0, tb != 0}, {size_t(lda), size_t(ldb), size_t(ldc)}, {a_type, b_type, c_type}};
  BEHIND(*handle);
  catch_up();
  multiply(factors, *(const float*)alpha, a, b, *(const float*)beta, c, c);
  return 0;
}

// ---- cuBLASLt ----------------------------------------------------------------------------------------------------------
// It has an algorithm only where everything is aligned to 16 bytes, so that the other way is gone as well. An algorithm is the shape that it
// was asked for, and dies of any other; what it is given to work in is no number when it is done.
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t stride;
};
struct Described {
  int turned[2];
};
struct Preference {
  uint64_t workspace;
  uint32_t sums, aligned[4];
};
struct Algorithm {
  uint64_t shape, workspace;
  uint32_t aligned[4];
  uint64_t rest[4];
};
struct Answer {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");

API cublasLtCreate(void** handle) { return *handle = (void*)1, 0; }
API cublasLtDestroy(void*) { return 0; }
API cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
  return *layout = new Layout{type, rows, cols, stride}, 0;
}
API cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, 0; }
API cublasLtMatmulDescCreate(Described** product, int sums, int scale) {
  if (sums != 68 || scale != F32) return 15; // CUBLAS_COMPUTE_32F alone
  return *product = new Described{}, 0;
}
API cublasLtMatmulDescSetAttribute(Described* product, int attribute, const void* value, size_t bytes) {
  if (attribute < 3 || attribute > 4 || bytes != 4) return 7; // TRANSA, TRANSB
  return memcpy(&product->turned[attribute - 3], value, bytes), 0;
}
API cublasLtMatmulDescDestroy(Described* product) { return delete product, 0; }
API cublasLtMatmulPreferenceCreate(Preference** preference) { return *preference = new Preference{0, ~0u, {256, 256, 256, 256}}, 0; }
API cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (attribute == 1 && bytes == 8) return memcpy(&preference->workspace, value, bytes), 0; // MAX_WORKSPACE_BYTES
  if (attribute == 3 && bytes == 4) return memcpy(&preference->sums, value, bytes), 0;      // REDUCTION_SCHEME_MASK
  if (attribute < 5 || attribute > 8 || bytes != 4) return 7;                               // MIN_ALIGNMENT_A_BYTES to _D_
  return memcpy(&preference->aligned[attribute - 5], value, bytes), 0;
}
API cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, 0; }

static bool factors_of(Factors& f, const Described* product, const Layout* a, const Layout* b, const Layout* c) {
  const Layout* all[3] = {a, b, c};
  for (int i = 0; i < 3; i++) {
    if (all[i]->stride < int64_t(all[i]->rows)) return false;
    f.stride[i] = all[i]->stride, f.type[i] = all[i]->type;
  }
  f.turned[0] = product->turned[0], f.turned[1] = product->turned[1];
  f.m = int(c->rows), f.n = int(c->cols), f.k = int(f.turned[0] ? a->rows : a->cols);
  return f.m == int(f.turned[0] ? a->cols : a->rows) && f.n == int(f.turned[1] ? b->rows : b->cols) &&
         f.k == int(f.turned[1] ? b->cols : b->rows) && f.type[0] == f.type[1] && (f.type[2] == F32 || f.type[2] == f.type[0]);
}
static uint64_t stamp(const Factors& f) {
  uint64_t all[] = {uint64_t(f.m), uint64_t(f.n), uint64_t(f.k), f.turned[0], f.turned[1],
                    f.stride[0],   f.stride[1],   f.stride[2],   uint64_t(f.type[0]), uint64_t(f.type[2])};
  uint64_t hash = 14695981039346656037u; // FNV-1a
  for (uint64_t x : all) hash = (hash ^ x) * 1099511628211u;
  return hash;
}
API cublasLtMatmulAlgoGetHeuristic(void*, const Described* product, const Layout* a, const Layout* b, const Layout* c,
                                   const Layout*, const Preference* preference, int wanted, Answer* answer, int* found) {
  Factors f;
  *found = 0;
  if (wanted < 1 || !factors_of(f, product, a, b, c)) return 7;
  if (preference->sums != 2) return 14; // COMPUTE_TYPE: sums of nothing less than f32
  Algorithm algorithm = {stamp(f), preference->workspace, {}, {}};
  for (int i = 0; i < 4; i++) {
    if (preference->aligned[i] < 16) return 0;
    algorithm.aligned[i] = preference->aligned[i];
  }
  *answer = {algorithm, preference->workspace, 0, 1.0f, {}};
  return *found = 1, 0;
}
API cublasLtMatmul(void*, const Described* product, const void* alpha, const void* a, const Layout* of_a, const void* b,
                   const Layout* of_b, const void* beta, const void* c, const Layout* of_c, void* d, const Layout* of_d,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  Factors f;
  const void* places[4] = {a, b, c, d};
  if (!factors_of(f, product, of_a, of_b, of_c) || of_c != of_d) return 7;
  bool fits = algorithm->shape == stamp(f) && workspace_bytes >= algorithm->workspace;
  for (int i = 0; i < 4; i++) fits &= Address(places[i]) % algorithm->aligned[i] == 0;
  if (!fits) fprintf(stderr, "emulator: an algorithm is given what it was not chosen for\n"), abort();
  BEHIND(stream);
  catch_up();
  memset(workspace, 0xff, std::min(workspace_bytes, size_t(4096)));
  multiply(f, *(const float*)alpha, a, b, *(const float*)beta, c, d);
  return 0;
}

// ---- NCCL --------------------------------------------------------------------------------------------------------------
// Ranks are threads here. As the real one is, opened as one that answers at once, it is late with everything: a sum that was asked for comes
// onto the stream only when somebody has looked twice, is no number until all ranks have come, and never becomes one without them. Broken
// off on one rank, it is over for that one alone. Sums are made in the order of ranks.
static const int SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7; // ncclResult_t
struct Id {
  char text[128];
};
struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};
struct World {
  int ranks, came;
  std::map<size_t, std::shared_ptr<Sum>> sums; // by number
};
struct Asked {
  char* at;
  size_t count;
  int type;
  Stream* stream;
};
struct Comm {
  std::shared_ptr<World> world;
  int rank;
  size_t next = 0;
  std::vector<Asked> asked;
  int looks = 0;
  Comm(std::shared_ptr<World> world, int rank) : world(world), rank(rank) {}
};
static std::map<std::string, std::shared_ptr<World>> worlds;
static bool held = false; // sums do not become over
static int closed = -1;   // the rank on which it does not open

static size_t size_of(int type) { return type == 7 ? 4 : 8; } // ncclFloat32, ncclFloat64
template <class T> static void add_up(Sum& sum) {
  for (size_t i = 0; i < sum.count; i++) {
    T total = ((T*)sum.given[0].data())[i];
    for (size_t rank = 1; rank < sum.given.size(); rank++) total += ((T*)sum.given[rank].data())[i];
    for (size_t rank = 0; rank < sum.at.size(); rank++)
      if (!sum.broken_off[rank]) ((T*)sum.at[rank])[i] = total;
  }
}
static void finish(Sum& sum) {
  size_t came = std::count_if(sum.at.begin(), sum.at.end(), [](char* at) { return at != nullptr; });
  if (sum.done || held || came < sum.at.size()) return;
  for (size_t rank = 0; rank < sum.at.size(); rank++) {
    if (sum.broken_off[rank]) return; // its part is gone
    auto next = allocations.upper_bound(Address(sum.at[rank]));
    if (next == allocations.begin() || Address(sum.at[rank]) >= std::prev(next)->first + std::max(std::prev(next)->second, size_t(1)))
      fprintf(stderr, "emulator: a buffer was given back while it was summed\n"), abort();
  }
  sum.type == 7 ? add_up<float>(sum) : add_up<double>(sum);
  sum.done = true;
  sum.given.clear();
  moved.notify_all();
}
static void put_on_stream(Comm& comm, const Asked& asked) {
  catch_up();
  World& world = *comm.world;
  auto& sum = world.sums[comm.next++];
  if (!sum) {
    sum = std::make_shared<Sum>();
    sum->count = asked.count, sum->type = asked.type;
    sum->at.resize(world.ranks), sum->given.resize(world.ranks), sum->broken_off.resize(world.ranks);
  }
  if (sum->count != asked.count || sum->type != asked.type)
    fprintf(stderr, "emulator: ranks sum %zu and %zu numbers\n", sum->count, asked.count), abort();
  size_t bytes = asked.count * size_of(asked.type);
  sum->given[comm.rank].assign(asked.at, asked.at + bytes);
  memset(asked.at, 0xff, bytes);
  sum->at[comm.rank] = asked.at;
  asked.stream->rank = comm.rank;
  asked.stream->waits.push_back({sum, comm.rank});
  finish(*sum);
}

API ncclGetVersion(int* version) { return *version = 23000, 0; }
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int) { return "an error of the emulator"; }
extern "C" __attribute__((visibility("default"))) const char* ncclGetLastError(Comm*) { return ""; }
API ncclGetUniqueId(Id* id) {
  ALONE;
  static int next = 0;
  memset(id->text, 0, sizeof id->text);
  return snprintf(id->text, sizeof id->text, "a place to meet, number %d", next++), 0;
}
API ncclCommInitRankConfig(Comm** comm, int ranks, Id id, int rank, const Config* config) {
  ALONE;
  if (config->magic != 0xcafebeef || config->size < 40 || config->version < 21800 || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
  if (config->blocking != 0) return INVALID_USAGE;
  auto& world = worlds[std::string(id.text, sizeof id.text)];
  if (!world) world = std::make_shared<World>(World{ranks, 0, {}});
  if (rank != closed) world->came++;
  *comm = new Comm(world, rank);
  return IN_PROGRESS;
}
API ncclCommGetAsyncError(Comm* comm, int* state) {
  ALONE;
  *state = comm->rank == closed ? SYSTEM_ERROR : comm->world->came < comm->world->ranks ? IN_PROGRESS : 0;
  if (*state == 0 && !comm->asked.empty()) {
    if (++comm->looks < 2) return *state = IN_PROGRESS, 0;
    for (const Asked& asked : comm->asked) put_on_stream(*comm, asked);
    comm->asked.clear(), comm->looks = 0;
  }
  return 0;
}
API ncclCommAbort(Comm* comm) {
  ALONE;
  for (auto& numbered : comm->world->sums) numbered.second->broken_off[comm->rank] = true;
  delete comm;
  return moved.notify_all(), 0;
}
API ncclGroupStart() { return 0; }
API ncclGroupEnd() { return IN_PROGRESS; }
API ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Comm* comm, void* stream) {
  ALONE;
  if (comm->world->came < comm->world->ranks) return INVALID_USAGE;
  if (from != to || (type != 7 && type != 8) || operation != 0 || !stream) return INVALID_ARGUMENT;
  comm->asked.push_back({(char*)to, count, type, (Stream*)stream});
  return IN_PROGRESS;
}

// For tests, what nobody brings about from outside; all take a number and bytes.
// Sums are held up, or go on.
API emulator_hold(int hold, size_t) {
  ALONE;
  held = hold;
  for (auto& world : worlds)
    for (auto& numbered : world.second->sums) finish(*numbered.second);
  return 0;
}
// How many ranks are inside a sum that is not over.
API emulator_inside(int, size_t) {
  ALONE;
  int most = 0;
  for (auto& world : worlds)
    for (auto& numbered : world.second->sums) {
      const Sum& sum = *numbered.second;
      int inside = 0;
      for (size_t rank = 0; rank < sum.at.size(); rank++) inside += sum.at[rank] && !sum.broken_off[rank];
      if (!sum.done) most = std::max(most, inside);
    }
  return most;
}
// On that rank it does not open; below 0, on all it does.
API emulator_close(int rank, size_t) {
  ALONE;
  return closed = rank, 0;
}
// That rank's device gives nothing back any more; below 0, all do.
API emulator_fault(int rank, size_t) {
  ALONE;
  return faulted = rank, 0;
}
// That rank's next buffer of so many bytes or more is refused; below 0, none. Says whose was to be.
API emulator_refuse(int rank, size_t bytes) {
  ALONE;
  int before = refusal.rank;
  return refusal.rank = rank, refusal.above = bytes, refusal.times = 2, before;
}
