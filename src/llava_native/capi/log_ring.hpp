// A bounded, thread-safe list of native log lines. The libraries log from any thread, also in pieces of
// a line; nothing here takes the GIL. Whichever thread passes the lines on, each keeps its own last warnings
// and errors beside them, for the exception of the call that they were about.
#pragma once

#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace llava_native {

struct LogLine {
    int level;
    std::thread::id thread;
    std::string text;
};

class LogRing {
  public:
    // ggml_log_callback; `level` 5 (GGML_LOG_LEVEL_CONT) continues the line before
    static void sink(int level, const char * text, void * self) {
        static_cast<LogRing *>(self)->append(level, text);
    }

    // Take the oldest finished line; false when there is none.
    bool pop(LogLine & out) {
        std::lock_guard<std::mutex> guard(mutex_);
        if (lines_.empty()) {
            return false;
        }
        out = std::move(lines_.front());
        lines_.pop_front();
        return true;
    }

    // Take the last warnings and errors of this thread since it took them before, the oldest first.
    static std::vector<std::string> take_own() { return std::exchange(own(), {}); }

  private:
    static constexpr size_t kMaxLines = 4096;   // a long load logs about 500
    static constexpr size_t kMaxLine  = 8192;
    static constexpr int    kCont     = 5;
    static constexpr int    kWarn     = 3;
    static constexpr size_t kMaxOwn   = 5;

    static std::vector<std::string> & own() {
        thread_local std::vector<std::string> lines;
        return lines;
    }

    void append(int level, const char * text) {
        std::lock_guard<std::mutex> guard(mutex_);
        if (level != kCont || partial_.text.empty()) {
            finish();
            partial_.level = level == kCont ? 2 : level;
            partial_.thread = std::this_thread::get_id();
        }
        for (; *text; ++text) {
            if (*text == '\n') {
                finish();
            } else if (partial_.text.size() < kMaxLine) {
                partial_.text.push_back(*text);
            }
        }
    }

    void finish() {
        if (partial_.text.empty()) {
            return;
        }
        if (lines_.size() == kMaxLines) {
            lines_.pop_front();
        }
        if (partial_.level >= kWarn && partial_.thread == std::this_thread::get_id()) {
            if (own().size() == kMaxOwn) {
                own().erase(own().begin());
            }
            own().push_back(partial_.text);
        }
        lines_.push_back(partial_);
        partial_.text.clear();
    }

    std::mutex mutex_;
    std::deque<LogLine> lines_;
    LogLine partial_{};
};

}  // namespace llava_native
