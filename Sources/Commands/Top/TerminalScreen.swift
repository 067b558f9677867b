import Foundation
import Glibc
import Platform

/// A terminal taken over for a while: another screen, no cursor, keys as they are typed. Given back by `leave`, whatever ended the use.
final class TerminalScreen {
    private let input: Int32
    private let output: Int32
    private var saved = termios()
    private var isEntered = true

    /// Both must be terminals.
    init(input: Int32, output: Int32) throws {
        self.input = input
        self.output = output
        guard tcgetattr(input, &saved) == 0 else { throw SystemError("tcgetattr", "the terminal") }
        var raw = saved
        raw.c_lflag &= ~tcflag_t(ICANON | ECHO)
        withUnsafeMutableBytes(of: &raw.c_cc) { characters in
            // read(2) returns with what there is. Ctrl-C remains a signal; Ctrl-Z would leave the shell with our screen.
            (characters[Int(VMIN)], characters[Int(VTIME)], characters[Int(VSUSP)]) = (0, 0, 0)
        }
        guard tcsetattr(input, TCSADRAIN, &raw) == 0 else { throw SystemError("tcsetattr", "the terminal") }
        write("\u{1B}[?1049h\u{1B}[?25l\u{1B}[2J")
    }

    deinit { leave() }

    /// The terminal as it was before. Safe to repeat.
    func leave() {
        guard isEntered else { return }
        isEntered = false
        write("\u{1B}[?25h\u{1B}[?1049l")
        tcsetattr(input, TCSADRAIN, &saved)
    }

    /// 24 x 80 where the terminal does not tell.
    var size: (rows: Int, columns: Int) {
        var size = winsize()
        guard ioctl(output, UInt(TIOCGWINSZ), &size) == 0, size.ws_row > 0, size.ws_col > 0 else { return (24, 80) }
        return (Int(size.ws_row), Int(size.ws_col))
    }

    /// Replaces what is shown, line by line so that nothing flickers; what does not fit is cut off.
    func show(_ lines: [String]) {
        let (rows, columns) = size
        var shown = lines
        if shown.count > rows { shown = Array(shown.prefix(max(0, rows - 1))) + ["\(lines.count - rows + 1) more lines do not fit on this terminal"] }
        write("\u{1B}[H" + shown.map { Self.clip($0, columns) + "\u{1B}[K" }.joined(separator: "\r\n") + "\u{1B}[J")
    }

    /// The first `columns` visible characters, with all escape sequences.
    static func clip(_ line: String, _ columns: Int) -> String {
        var kept = "", visible = 0, isEscape = false
        for character in line {
            if isEscape {
                kept.append(character)
                if character.isLetter { isEscape = false }
            } else if character == "\u{1B}" {
                kept.append(character)
                isEscape = true
            } else if visible < columns {
                kept.append(character)
                visible += 1
            }
        }
        return kept
    }

    /// What was typed since; nil: the terminal is gone.
    func keys() -> [Character]? {
        var bytes = [UInt8](repeating: 0, count: 64)
        let n = retryingInterrupts { read(input, &bytes, bytes.count) }
        // With VMIN 0 no input is 0 as well; it was polled readable, so that is the end.
        guard n > 0 else { return n < 0 && errno == EAGAIN ? [] : nil }
        return bytes[..<n].map { Character(UnicodeScalar($0)) }
    }

    private func write(_ text: String) {
        try? Array(text.utf8).withUnsafeBytes { bytes in
            var done = 0
            while done < bytes.count {
                let n = retryingInterrupts { Glibc.write(output, bytes.baseAddress.map { $0 + done }, bytes.count - done) }
                // A terminal that is gone says so at the next poll of its input.
                guard n > 0 else { throw SystemError("write", "the terminal") }
                done += n
            }
        }
    }
}

/// What the handler needs; set before it is installed.
nonisolated(unsafe) private var signalWake: Int32 = -1
nonisolated(unsafe) private var signalEnds: Int32 = 0

/// While one of these lives, the signals that end a program and that of a changed window size make `wake` readable. One at a time.
final class TerminalSignals {
    let wake: WakeUp
    private static let ending = [SIGINT, SIGTERM, SIGHUP]

    init() throws {
        wake = try WakeUp()
        signalWake = wake.raw
        signalEnds = 0
        for number in Self.ending + [SIGWINCH] { signal(number, noteSignal) }
    }

    var endsNow: Bool { signalEnds != 0 }

    deinit {
        // One that is freed late must not take the handlers of its successor away: the next signal would end the program.
        guard signalWake == wake.raw else { return }
        for number in Self.ending + [SIGWINCH] { signal(number, SIG_DFL) }
        signalWake = -1
    }
}

/// write(2) only, which is async-signal-safe.
private func noteSignal(_ number: Int32) {
    if number != SIGWINCH { signalEnds = 1 }
    let saved = errno
    var one: UInt64 = 1
    _ = write(signalWake, &one, 8)
    errno = saved
}
