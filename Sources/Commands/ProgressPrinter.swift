import ControlProtocol
import Platform

/// Shows a request's progress on stderr: one line that changes on a terminal, else a new line at most every 5 s; notices stay, and
/// come at once.
final class ProgressPrinter {
    static let lineEveryMs = 5000.0
    private let output: Output
    private let quiet: Bool
    private var lastLine: (time: MonotonicTime, text: String)?
    private var lastNotice = ""
    private var isShowing = false

    init(_ output: Output, quiet: Bool) {
        self.output = output
        self.quiet = quiet
    }

    func show(_ progress: ControlResponse.Progress, now: MonotonicTime = .now) {
        guard !quiet else { return }
        let text = Self.text(progress)
        if progress.isNotice == true {
            clear()
            output.message(text)
            lastNotice = text
        } else if output.errorIsTerminal {
            // Return, the text, erase what the line before left.
            output.raw("\r\(text.prefix(max(20, output.width - 1)))\u{1B}[K")
            isShowing = true
        } else if text == lastNotice {
            // It stands there already.
            return
        } else if let last = lastLine, last.text == text || now.milliseconds(since: last.time) < Self.lineEveryMs {
            return
        } else {
            lastLine = (now, text)
            output.message(text)
        }
    }

    /// Takes the changing line away.
    func clear() {
        if isShowing { output.raw("\r\u{1B}[K") }
        isShowing = false
    }

    static func text(_ progress: ControlResponse.Progress) -> String {
        let message = progress.message.printable
        guard let done = progress.bytesDone, let total = progress.bytesTotal, total > 0 else { return message }
        return "\(message): \(Quantity.progress(done, of: total))"
    }
}
