// What happens when the native library aborts: GGML_ABORT and GGML_ASSERT end here.
#pragma once

#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include <unistd.h>

#include "ggml.h"

namespace llava_native {

// From hold() to its end, an abort on its thread is a C++ exception. Only for calls that run on their
// caller's thread alone and through no noexcept frame, such as a destructor: an exception in a worker of
// ggml ends the process, and one in its first thread leaves OpenMP believing that the loop goes on.
class LastNet {
  public:
    LastNet() = default;
    ~LastNet() { may_unwind() = false; }
    LastNet(const LastNet &) = delete;
    LastNet & operator=(const LastNet &) = delete;

    void hold() {
        may_unwind() = !rolled_up();
        pending().clear();
    }

    // The message of an abort on this thread, or "". The hold ends: what handles errors may run anything.
    static std::string take() {
        may_unwind() = false;
        return std::exchange(pending(), std::string());
    }

    // From here on, aborts end in an exception or in `report`, after which the process ends.
    static void spread(void (*report)(const char *)) {
        reporter() = report;
        ggml_set_abort_callback(fall);
    }

    // From here on, every abort ends the process.
    static void roll_up() { rolled_up() = true; }

    // Ends the process after `seconds` whatever the report waits for, a lock of the interpreter perhaps.
    static void hurry(unsigned seconds) {
        std::signal(SIGALRM, [](int) { std::abort(); });
        alarm(seconds);
    }

  private:
    static void fall(const char * message) {
        if (may_unwind()) {
            pending() = *message ? message : "(no message)";
            throw std::runtime_error(pending());
        }
        reporter()(message);
    }
    static bool & may_unwind() {
        static thread_local bool value = false;
        return value;
    }
    static std::string & pending() {
        static thread_local std::string value;
        return value;
    }
    static bool & rolled_up() {
        static bool value = false;
        return value;
    }
    static void (*&reporter())(const char *) {
        static void (*value)(const char *) = nullptr;
        return value;
    }
};

}  // namespace llava_native
