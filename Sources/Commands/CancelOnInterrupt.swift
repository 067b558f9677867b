import Glibc
import Platform

/// What the signal handler needs; set before it is installed, never freed.
nonisolated(unsafe) private var wakeDescriptor: Int32 = -1
nonisolated(unsafe) private var presses: Int32 = 0
nonisolated(unsafe) private var lastWords: UnsafeMutableBufferPointer<UInt8>?

/// While one of these lives, the first Ctrl-C makes `wake` readable, so that what runs in the service can be cancelled and its end waited for; the
/// second one stops waiting and exits with 130. One at a time. The handler calls write(2) and _exit(2) only, which are async-signal-safe.
final class CancelOnInterrupt {
    let wake: WakeUp

    /// `notice`: what the second Ctrl-C has to say.
    init(_ output: Output, notice: String) throws {
        wake = try WakeUp()
        wakeDescriptor = wake.raw
        presses = 0
        let text = (output.errorIsTerminal ? "\r\u{1B}[K" : "") + "Interrupted. \(notice)\n"
        let bytes = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: text.utf8.count)
        _ = bytes.initialize(from: text.utf8)
        lastWords = bytes
        // Who starts us with SIGINT ignored (nohup, a shell's background job) means it.
        if let old = signal(SIGINT, pressed), unsafeBitCast(old, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) {
            signal(SIGINT, SIG_IGN)
        }
    }

    var isPressed: Bool { presses > 0 }

    deinit {
        if let old = signal(SIGINT, SIG_DFL), unsafeBitCast(old, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) { signal(SIGINT, SIG_IGN) }
        wakeDescriptor = -1
    }
}

private func pressed(_: Int32) {
    presses += 1
    if presses > 1 {
        if let bytes = lastWords { _ = write(2, bytes.baseAddress, bytes.count) }
        _exit(ExitCode.interrupted)
    }
    let saved = errno
    var one: UInt64 = 1
    _ = write(wakeDescriptor, &one, 8)
    errno = saved
}
