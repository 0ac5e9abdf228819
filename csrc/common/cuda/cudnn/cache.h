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

  // The plan of this key on this GPU, which must be the current one. Where there is none yet it is read from
  // the folder or built of `graph()`, which takes seconds; null where `may_build` is false. What no engine
  // takes has no plan and is not tried again. Equal keys are of equal graphs.
  const Entry* find(int device, const Key& key, bool deterministic, bool may_build,
                    const std::function<Graph()>& graph);

  // A handle on this stream; none where `may_make` is false and all that there are is in use.
  std::optional<Lease> handle(int device, Stream stream, bool may_make);

 private:
  friend class Lease;
  struct Hash {
    size_t operator()(const Key& key) const;
  };

  const Entry* known(const Key& key) const;
  Entry make(int device, const Graph& graph, bool deterministic);

  std::mutex building_, handing_;
  mutable std::shared_mutex looking_;
  std::unordered_map<Key, Entry, Hash> entries_;
  std::map<int, std::vector<Handle>> idle_;
  std::string folder_;
};

}  // namespace bcos::cudnn
