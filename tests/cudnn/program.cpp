// The layer that speaks to cuDNN, against the stand-in: program CASE FOLDER. Ends with "ok", or says what is
// wrong.
#include <sys/stat.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>

#include "common/cuda/cudnn/cache.h"

extern "C" void mock_set(const char* name, int64_t value);
extern "C" int64_t mock_calls(const char* name);
extern "C" int64_t mock_alive();

namespace {

namespace files = std::filesystem;
using namespace bcos::cudnn;

#define CHECK(condition)                                                \
  if (!(condition)) {                                                   \
    std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    std::exit(1);                                                       \
  }

// y = |a b| c with a [1, 2, 3] and b [1, 3, 2] in bf16, of which the second in this process may have another
// number
Graph example(float c = 2) {
  Graph graph;
  const int a = graph.memory({1, 2, 3}, {6, 3, 1}, DataType::BFloat16);
  const int b = graph.memory({1, 3, 2}, {6, 2, 1}, DataType::BFloat16);
  const int z = graph.product(Operator::Matmul, a, b, {1, 2, 2}, {4, 2, 1});
  graph.output(graph.pointwise(Pointwise::Mul, graph.pointwise(Pointwise::Abs, z), graph.value(c, 3)),
               DataType::Float);
  return graph;
}

uint16_t bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t(bits >> 16);
}

// Runs the example and compares.
void run(Cache& cache, const Entry* entry, float c = 2) {
  CHECK(entry != nullptr && entry->plan.has_value());
  alignas(16) uint16_t a[8] = {}, b[8] = {};
  alignas(16) float y[4] = {NAN, NAN, NAN, NAN};
  for (int i = 0; i < 6; i++) a[i] = bfloat(float(i - 3)), b[i] = bfloat(float(2 * i - 5));
  const auto lease = cache.handle(0, nullptr, true);
  CHECK(lease.has_value());
  std::vector<char> workspace(size_t(entry->plan->workspace()));
  entry->plan->run(lease->handle(), {a, b, y}, workspace.empty() ? nullptr : workspace.data());
  for (int m = 0; m < 2; m++)
    for (int n = 0; n < 2; n++) {
      float sum = 0;
      for (int k = 0; k < 3; k++) sum += float(3 * m + k - 3) * float(2 * (2 * k + n) - 5);
      CHECK(y[2 * m + n] == std::fabs(sum) * c);
    }
}

const Entry* found(Cache& cache, int64_t key = 1, Source allowed = Source::Compiler) {
  return cache.find(0, {key}, allowed, [] { return example(); });
}

std::string read(const files::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const files::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

bool says(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

void cache(const std::string& folder) {
  const auto plans = folder + "/below/plans";
  Cache first;
  first.set_folder(plans);
  for (const auto allowed : {Source::Memory, Source::Disk}) CHECK(found(first, 1, allowed) == nullptr);
  CHECK(mock_calls("built") == 0 && mock_calls("Create") == 0 && !files::exists(plans));
  const auto* entry = found(first);
  run(first, entry);
  for (const auto allowed : {Source::Memory, Source::Disk, Source::Compiler})
    CHECK(found(first, 1, allowed) == entry);
  CHECK(mock_calls("built") == 1);
  struct stat facts;
  CHECK(stat(plans.c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0700);
  const files::path file = files::directory_iterator(plans)->path();
  CHECK(stat(file.c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);

  Cache second;  // of another process, which has the stored plan without compiling
  second.set_folder(plans);
  CHECK(found(second, 1, Source::Memory) == nullptr);
  run(second, found(second, 1, Source::Disk));
  CHECK(mock_calls("built") == 1 && mock_calls("restored") == 1 &&
        found(second, 1, Source::Memory) != nullptr);
  const auto other = [] { return example(3); };
  CHECK(second.find(0, {2}, Source::Disk, other) == nullptr);
  run(second, second.find(0, {2}, Source::Compiler, other), 3);
  CHECK(mock_calls("built") == 2);
  mock_set("place", 1);  // the next GPU of the machine, of the same kind
  Cache beside;
  beside.set_folder(plans);
  run(beside, found(beside, 1, Source::Disk));
  CHECK(mock_calls("restored") == 2);
  mock_set("device", 7);
  Cache unlike;
  unlike.set_folder(plans);
  CHECK(found(unlike, 1, Source::Disk) == nullptr);
  run(unlike, found(unlike));
  CHECK(mock_calls("built") == 3 && std::distance(files::directory_iterator(plans), {}) == 3);
  Cache nowhere;
  run(nowhere, found(nowhere));
  CHECK(mock_calls("built") == 4);
}

// Whatever stands in a plan's file is replaced, unless others could have written it.
void damaged(const std::string& folder) {
  const auto plans = folder + "/plans";
  const auto of_new_process = [&] {
    Cache cache;
    cache.set_folder(plans);
    const auto before = mock_calls("built");
    run(cache, found(cache));
    return mock_calls("built") > before;
  };
  CHECK(of_new_process() && !of_new_process());
  const files::path file = files::directory_iterator(plans)->path();
  const auto good = read(file);
  const auto bad = [&](const std::string& text) {
    write(file, text);
    CHECK(of_new_process() && read(file) == good && !of_new_process());
  };
  for (const size_t length : {size_t(0), size_t(5), size_t(30), good.size() / 2, good.size() - 1})
    bad(good.substr(0, length));
  bad(good + "x");
  bad("bcos_kernels plan 1\n" + good.substr(good.find('\n') + 1));
  auto changed = good;
  changed[good.size() - 3] ^= 1;
  bad(changed);
  auto foreign = good;  // the right name and digest, of another version of cuDNN
  foreign.replace(foreign.find("92801"), 5, "92802");
  bad(foreign);

  chmod(file.c_str(), 0620);
  CHECK(of_new_process());
  chmod(file.c_str(), 0600);
  chmod(plans.c_str(), 0720);
  CHECK(of_new_process() && of_new_process());
  chmod(plans.c_str(), 0702);
  CHECK(of_new_process() && of_new_process());
  chmod(plans.c_str(), 0700);
  CHECK(!of_new_process());
  files::rename(file, folder + "/elsewhere");
  files::create_symlink(folder + "/elsewhere", file);
  CHECK(of_new_process() && !files::is_symlink(file));
  files::remove(file);
  files::create_directory(file);
  CHECK(of_new_process() && of_new_process() && std::distance(files::directory_iterator(plans), {}) == 1);
  files::remove_all(plans);
  files::create_directory_symlink(folder, plans);
  CHECK(of_new_process() && of_new_process());
  files::remove(plans);
  write(plans, "a file");
  CHECK(of_new_process() && of_new_process() && read(plans) == "a file");
}

// A plan that this cuDNN does not take, though the file is whole, is built again.
void unusable(const std::string& folder) {
  const auto plans = folder + "/plans";
  const auto key = "cudnn 92801 {\"deviceName\":\"mock 0\"} " + example().text();
  Store(plans).write(key, "{no plan}");
  CHECK(Store(plans).read(key) == "{no plan}" && !Store(plans).read(key + "x") && !Store("").read(key));
  Cache cache;
  cache.set_folder(plans);
  CHECK(found(cache, 1, Source::Disk) == nullptr && mock_calls("restored") == 1);
  run(cache, found(cache));
  CHECK(mock_calls("restored") == 2 && mock_calls("built") == 1 && Store(plans).read(key) != "{no plan}");
}

void refusals(const std::string&) {
  Cache cache;
  int64_t key = 100;
  const auto why = [&] {
    const auto* entry = found(cache, ++key);
    CHECK(entry->plan.has_value() == entry->why_not.empty());
    CHECK(found(cache, key) == entry);  // not tried again
    return entry->why_not;
  };
  CHECK(why() == "");
  mock_set("refused_configs", 1);
  CHECK(why() == "");  // the next engine
  mock_set("refused_configs", 2);
  CHECK(says(why(), "cuDNN 9.28.1, building a plan: status 3000, the mock refuses this engine"));
  mock_set("refused_configs", 0);
  mock_set("nondeterministic_configs", 1);
  CHECK(why() == "");  // the next engine
  mock_set("nondeterministic_configs", 2);
  CHECK(says(why(), "cuDNN has no deterministic engine for this graph"));
  mock_set("nondeterministic_configs", 0);
  mock_set("configs", 0);
  CHECK(says(why(), "no engine"));
  mock_set("configs", 2);
  mock_set("refuse_graph", 1);
  CHECK(says(why(), "looking for engines: status 3000, the mock refuses this graph"));
  mock_set("refuse_graph", 0);
  mock_set("workspace", 1000);
  run(cache, found(cache, ++key));
  mock_set("workspace", int64_t(1) << 40);
  CHECK(says(why(), "workspace of 1099511627776 bytes, allowed: up to"));
}

// Whichever function fails, the reason is told and nothing is left behind.
void failures(const std::string&) {
  int64_t key = 0;
  for (const char* name : {"Create", "SetStream", "BackendCreateDescriptor", "BackendFinalize",
                           "BackendSetAttribute", "BackendGetAttribute"}) {
    Cache cache;
    const auto setting = std::string("fail_") + name;
    mock_set(setting.c_str(), 4000);
    const auto* entry = found(cache, ++key);
    CHECK(!entry->plan &&
          says(entry->why_not, (std::string("status 4000, the mock fails in ") + name).c_str()));
    CHECK(mock_alive() == 0);
    mock_set(setting.c_str(), 0);
    run(cache, found(cache, ++key));
  }
  CHECK(mock_alive() == 0);
  Cache cache;
  const auto* entry = found(cache);
  mock_set("fail_run", 1);
  const auto alive = mock_alive();
  const auto fails = [&](const std::vector<const void*>& addresses, const char* part) {
    try {
      entry->plan->run(cache.handle(0, nullptr, true)->handle(), addresses, nullptr);
    } catch (const Error& error) {
      CHECK(says(error.what(), part) && mock_alive() == alive);
      return true;
    }
    return false;
  };
  alignas(16) float x[8] = {};
  CHECK(fails({x, x, x}, "running a plan: status 5000, the mock fails to run"));
  mock_set("fail_run", 0);
  CHECK(fails({x, x}, "a plan of 4 tensors was given 3"));
  CHECK(fails({x, x, x + 1}, "an address is misaligned"));
  run(cache, entry);
}

void handles(const std::string&) {
  Cache cache;
  CHECK(!cache.handle(0, nullptr, false));
  Handle first = nullptr;
  {
    const auto one = cache.handle(0, nullptr, true), two = cache.handle(0, nullptr, true);
    CHECK(one->handle() != two->handle() && !cache.handle(0, nullptr, false));
    first = two->handle();
  }
  CHECK(cache.handle(0, nullptr, false)->handle() == first || mock_calls("Create") == 2);
  CHECK(!cache.handle(1, nullptr, false));  // another GPU
}

void threads(const std::string& folder) {
  Cache cache;
  cache.set_folder(folder + "/plans");
  std::vector<std::thread> all;
  for (int t = 0; t < 8; t++)
    all.emplace_back([&] {
      for (int64_t i = 0; i < 24; i++)
        run(cache, cache.find(0, {i % 6}, Source::Compiler, [i] { return example(float(i % 6)); }),
            float(i % 6));
    });
  for (auto& thread : all) thread.join();
  CHECK(mock_calls("built") >= 1 && mock_calls("built") <= 6 * 8 && mock_calls("Create") <= 16);
  CHECK(std::distance(files::directory_iterator(folder + "/plans"), {}) == 6);
}

void unserved(const std::string&) {
  mock_set("version", std::atoll(std::getenv("MOCK_VERSION")));
  Cache cache;
  const auto* entry = found(cache);
  CHECK(!entry->plan);
  std::printf("%s\n", entry->why_not.c_str());
}

const std::pair<const char*, void (*)(const std::string&)> kCases[] = {
    {"cache", cache},       {"damaged", damaged}, {"unusable", unusable}, {"refusals", refusals},
    {"failures", failures}, {"handles", handles}, {"threads", threads},   {"unserved", unserved}};

}  // namespace

int main(int count, char** arguments) {
  for (const auto& [name, run_case] : kCases)
    if (count == 3 && std::string(name) == arguments[1]) return run_case(arguments[2]), std::puts("ok"), 0;
  return std::puts("program CASE FOLDER"), 2;
}
