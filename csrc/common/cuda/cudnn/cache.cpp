#include "common/cuda/cudnn/cache.h"

#include <utility>

namespace bcos::cudnn {

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
  const std::unique_lock lock(looking_);
  folder_ = folder;
}

std::string Cache::folder() const {
  const std::shared_lock lock(looking_);
  return folder_;
}

const Entry* Cache::known(const Key& key) const {
  const std::shared_lock lock(looking_);
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

const Entry* Cache::find(int device, const Key& key, Source allowed, const std::function<Graph()>& graph) {
  Key whole = key;
  whole.push_back(device);
  const auto* entry = known(whole);
  if (entry != nullptr || allowed == Source::Memory) return entry;
  auto taken = take(device, allowed, graph());
  if (!taken) return nullptr;
  const std::unique_lock lock(looking_);
  return &entries_.emplace(std::move(whole), std::move(*taken)).first->second;
}

const std::string& Cache::text_of(int device) {
  {
    const std::shared_lock lock(looking_);
    if (const auto found = devices_.find(device); found != devices_.end()) return found->second;
  }
  auto text = Device(handle(device, nullptr, true)->handle()).text();
  const std::unique_lock lock(looking_);
  return devices_.emplace(device, std::move(text)).first->second;
}

std::optional<Entry> Cache::take(int device, Source allowed, const Graph& graph) {
  const bool compiles = allowed == Source::Compiler;
  const Store store(folder());
  if (!compiles && !store.exists()) return std::nullopt;  // as in most processes that nobody tuned for
  try {
    const auto key = "cudnn " + std::to_string(version()) + " " + text_of(device) + " " + graph.text();
    const auto kept = store.read(key);
    if (!kept && !compiles) return std::nullopt;
    const auto lease = handle(device, nullptr, true);
    const Device gpu(lease->handle());
    if (kept) try {
        return Entry{Plan::restore(graph, gpu, *kept), ""};
      } catch (const Error&) {  // it is compiled again, and replaced
        if (!compiles) return std::nullopt;
      }
    auto plan = Plan::build(graph, gpu);
    store.write(key, plan.json());
    return Entry{std::move(plan), ""};
  } catch (const Error& error) {
    return compiles ? std::optional(Entry{std::nullopt, error.what()}) : std::nullopt;
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
