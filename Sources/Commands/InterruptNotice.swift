import Glibc

/// What the signal handler writes; set before the handler is installed, never freed.
nonisolated(unsafe) private var noticeBytes: UnsafeMutableBufferPointer<UInt8>?

/// While one of these lives, Ctrl-C prints what goes on without us and exits with 130. One at a time.
///
/// A handler of our own rather than a dispatch source: that one is registered some time after `resume`, and a signal
/// that comes before is lost. The handler calls write(2) and _exit(2) only, which are async-signal-safe.
final class InterruptNotice {
    init(_ output: Output, notice: String) {
        let text = (output.errorIsTerminal ? "\r\u{1B}[K" : "") + (notice.isEmpty ? "Interrupted" : "Interrupted. \(notice)") + "\n"
        let bytes = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: text.utf8.count)
        _ = bytes.initialize(from: text.utf8)
        noticeBytes = bytes
        // Who starts us with SIGINT ignored (nohup, a shell's background job) means it.
        if let old = signal(SIGINT, interrupted), unsafeBitCast(old, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) {
            signal(SIGINT, SIG_IGN)
        }
    }

    deinit {
        guard let old = signal(SIGINT, SIG_DFL), unsafeBitCast(old, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) else { return }
        signal(SIGINT, SIG_IGN)
    }
}

private func interrupted(_: Int32) {
    if let bytes = noticeBytes { _ = write(2, bytes.baseAddress, bytes.count) }
    _exit(ExitCode.interrupted)
}
