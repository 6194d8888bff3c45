// Host functions: a thread of their own calls them, one after another, while everything else goes on.
#include "device.hpp"

#include <utility>

namespace software_gpu {

thread_local bool within_host_function = false;

// Never destroyed: at the end of the process the thread still waits.
static std::mutex& mutex = *new std::mutex;
static std::condition_variable& changed = *new std::condition_variable;
static auto& waiting = *new std::deque<std::pair<Stream*, Work>>;
static unsigned long long ended = 0;

static void call_host_functions() {
  for (;;) {
    std::pair<Stream*, Work> next;
    {
      std::unique_lock<std::mutex> guard(mutex);
      changed.wait(guard, [] { return !waiting.empty(); });
      next = std::move(waiting.front());
      waiting.pop_front();
    }
    within_host_function = true;
    next.second();
    within_host_function = false;
    Guard g(lock);
    host_function_ended(next.first);
    {
      std::lock_guard<std::mutex> guard(mutex);
      ++ended;
    }
    changed.notify_all();
  }
}
void call_host(Stream* stream, Work function) {
  static bool started = false;
  if (!started) std::thread(call_host_functions).detach();
  started = true;
  {
    std::lock_guard<std::mutex> guard(mutex);
    waiting.emplace_back(stream, std::move(function));
  }
  changed.notify_all();
}
void wait_for_host_function(const Stream* stream) {
  while (stream->calling) {
    std::unique_lock<std::mutex> guard(mutex);
    const unsigned long long before = ended;
    guard.unlock();  // never both: the other thread takes this one within that one
    const unsigned depth = lock.leave();
    guard.lock();
    changed.wait(guard, [&] { return ended != before; });
    guard.unlock();
    lock.enter(depth);
  }
}

}  // namespace software_gpu
