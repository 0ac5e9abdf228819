// The plans of this process, and the handles that they run with.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "common/cuda/cudnn/plan.h"
#include "common/cuda/cudnn/store.h"

namespace bcos::cudnn {

using Key = std::vector<int64_t>;

// One user's handle of a GPU, which goes back to the others with this object.
class Lease {
 public:
  Lease(Lease&& other) noexcept;
  Lease(const Lease&) = delete;
  ~Lease();

  Handle handle() const { return handle_; }

 private:
  friend class Cache;
  Lease(class Cache* from, int device, Handle handle) : from_(from), device_(device), handle_(handle) {}

  class Cache* from_;
  int device_;
  Handle handle_;
};

// Where a plan may be taken from; each includes those before it.
enum class Source {
  Memory,   // this process, at once; the only one while a CUDA graph is recorded
  Disk,     // the folder, in milliseconds
  Compiler  // cuDNN, in seconds
};

struct Entry {
  std::optional<Plan> plan;
  std::string why_not;  // where there is no plan: cuDNN's reason, or ours
};

// Everything in it stays until the process ends, because a CUDA graph may launch a plan that it recorded at
// any time. Any thread may use it.
class Cache {
 public:
  // Where plans are kept between processes; empty: nowhere.
  void set_folder(const std::string& folder);

  // The plan of this key on this GPU, which must be the current one, or why cuDNN compiles none; null where
  // the allowed sources have neither. What no engine takes is not compiled again. Equal keys are of equal
  // graphs. Threads that ask for the same plan at the same time may all compile it, and the first one stays.
  const Entry* find(int device, const Key& key, Source allowed, const std::function<Graph()>& graph);

  // A handle on this stream; none where `may_make` is false and all that there are is in use.
  std::optional<Lease> handle(int device, Stream stream, bool may_make);

 private:
  friend class Lease;
  struct Hash {
    size_t operator()(const Key& key) const;
  };

  const Entry* known(const Key& key) const;
  std::optional<Entry> take(int device, Source allowed, const Graph& graph);
  std::string folder() const;
  const std::string& text_of(int device);

  std::mutex handing_;
  mutable std::shared_mutex looking_;
  std::unordered_map<Key, Entry, Hash> entries_;
  std::map<int, std::string> devices_;  // what plans are stored by, of each GPU
  std::map<int, std::vector<Handle>> idle_;
  std::string folder_;
};

}  // namespace bcos::cudnn
