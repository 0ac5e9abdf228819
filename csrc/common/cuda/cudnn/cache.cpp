#include "common/cuda/cudnn/cache.h"

#include <utility>

namespace bcos::cudnn {
namespace {

constexpr size_t kMostPlans = 4096;

}  // namespace

Lease::Lease(Lease&& other) noexcept
    : from_(std::exchange(other.from_, nullptr)), device_(other.device_), handle_(other.handle_) {}

Lease::~Lease() {
  if (from_ == nullptr) return;
  const std::lock_guard lock(from_->handing_);
  from_->idle_[device_].push_back(handle_);
}

size_t Cache::Hash::operator()(const Key& key) const {
  uint64_t value = 14695981039346656037u;
  for (const int64_t part : key) value = (value ^ uint64_t(part)) * 1099511628211u;
  return size_t(value ^ (value >> 32));
}

void Cache::set_folder(const std::string& folder) {
  const std::lock_guard lock(building_);
  folder_ = folder;
}

const Entry* Cache::known(const Key& key) const {
  const std::shared_lock lock(looking_);
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

const Entry* Cache::find(int device, const Key& key, bool deterministic, bool may_build,
                         const std::function<Graph()>& graph) {
  Key whole = key;
  whole.push_back(device);
  whole.push_back(deterministic);
  if (const auto* entry = known(whole)) return entry;
  if (!may_build) return nullptr;
  const std::lock_guard build(building_);
  if (const auto* entry = known(whole)) return entry;  // another thread built it meanwhile
  static const Entry full{std::nullopt,
                          std::to_string(kMostPlans) + " plans are held, as many as one process keeps"};
  if (entries_.size() >= kMostPlans) return &full;
  auto entry = make(device, graph(), deterministic);
  const std::unique_lock lock(looking_);
  return &entries_.emplace(std::move(whole), std::move(entry)).first->second;
}

Entry Cache::make(int device, const Graph& graph, bool deterministic) {
  try {
    const auto lease = handle(device, nullptr, true);
    const Device gpu(lease->handle());
    const Store store(folder_);
    const auto key = "cudnn " + std::to_string(version()) + (deterministic ? " deterministic " : " ") +
                     gpu.text() + " " + graph.text();
    if (const auto kept = store.read(key)) try {
        return {Plan::restore(graph, gpu, *kept), ""};
      } catch (const Error&) {  // it is built again, and replaced
      }
    auto plan = Plan::build(graph, gpu, deterministic);
    store.write(key, plan.json());
    return {std::move(plan), ""};
  } catch (const Error& error) {
    return {std::nullopt, error.what()};
  }
}

std::optional<Lease> Cache::handle(int device, Stream stream, bool may_make) {
  Handle found = nullptr;
  {
    const std::lock_guard lock(handing_);
    auto& idle = idle_[device];
    if (!idle.empty()) {
      found = idle.back();
      idle.pop_back();
    }
  }
  if (found == nullptr) {
    if (!may_make) return std::nullopt;
    check(api().Create(&found), "making a handle");
  }
  Lease lease(this, device, found);
  check(api().SetStream(found, stream), "setting a handle's stream");
  return lease;
}

}  // namespace bcos::cudnn
