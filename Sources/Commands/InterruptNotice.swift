import Dispatch
import Glibc

/// While one of these lives, Ctrl-C prints what goes on without us and exits with 130.
final class InterruptNotice {
    private let source: any DispatchSourceSignal

    init(_ output: Output, notice: String) {
        signal(SIGINT, SIG_IGN)
        source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
        source.setEventHandler {
            output.message((output.errorIsTerminal ? "\r\u{1B}[K" : "") + (notice.isEmpty ? "Interrupted" : "Interrupted. \(notice)"))
            _exit(ExitCode.interrupted)
        }
        source.resume()
    }

    deinit {
        source.cancel()
        signal(SIGINT, SIG_DFL)
    }
}
