import Foundation
import Glibc
import Platform

/// Where a command writes: data to stdout, everything else to stderr.
public final class Output: @unchecked Sendable {
    public let outIsTerminal: Bool
    public let errorIsTerminal: Bool
    /// Escape sequences are welcome on stdout / stderr.
    public let colourOut: Bool
    public let colourError: Bool
    /// Columns of the terminal, for wrapping; 80 without one.
    public let width: Int
    private let writeOut: @Sendable ([UInt8]) -> Int32
    private let writeError: @Sendable ([UInt8]) -> Int32
    private let lock = NSLock()
    private var outCode: Int32 = 0

    /// `out` and `error` return 0 or an `errno`.
    public init(outIsTerminal: Bool, errorIsTerminal: Bool, environment: [String: String], width: Int = 80,
                out: @escaping @Sendable ([UInt8]) -> Int32, error: @escaping @Sendable ([UInt8]) -> Int32) {
        // https://no-color.org: set and not empty.
        let wanted = environment["NO_COLOR"].map(\.isEmpty) ?? true && environment["TERM"] != "dumb"
        self.outIsTerminal = outIsTerminal
        self.errorIsTerminal = errorIsTerminal
        colourOut = wanted && outIsTerminal
        colourError = wanted && errorIsTerminal
        self.width = width
        writeOut = out
        writeError = error
    }

    /// The process's own stdout and stderr.
    public static func standard(environment: [String: String] = ProcessInfo.processInfo.environment) -> Output {
        var size = winsize()
        let width = ioctl(1, UInt(TIOCGWINSZ), &size) == 0 && size.ws_col >= 40 ? Int(size.ws_col) : 80
        return Output(outIsTerminal: isatty(1) == 1, errorIsTerminal: isatty(2) == 1, environment: environment, width: width,
                      out: { writeAll($0, to: 1) }, error: { writeAll($0, to: 2) })
    }

    /// Data, with a line end added when it has none.
    public func data(_ text: String) {
        guard !text.isEmpty else { return }
        let code = writeOut(Array((text.hasSuffix("\n") ? text : text + "\n").utf8))
        lock.lock()
        defer { lock.unlock() }
        if outCode == 0 { outCode = code }
    }

    /// True once the reader of a pipe on stdout has left, as `head` does: nothing more needs to be written.
    public var readerHasLeft: Bool {
        lock.lock()
        defer { lock.unlock() }
        return outCode == EPIPE
    }

    /// A message for the person at the terminal, one line.
    public func message(_ text: String) {
        _ = writeError(Array((text + "\n").utf8))
    }

    /// Bytes for stderr as they are.
    public func raw(_ text: String) {
        _ = writeError(Array(text.utf8))
    }

    /// An error with its way out.
    public func error(_ message: String, advice: String = "") {
        let label = colourError ? "\u{1B}[1;31merror:\u{1B}[0m" : "error:"
        self.message("\(label) \(message.printable)" + (advice.isEmpty ? "" : "\n  \(advice.printable)"))
    }

    /// The error that writing to stdout met, or 0. EPIPE (the reader of a pipe left, as `head` does) is none.
    public var dataError: Int32 {
        lock.lock()
        defer { lock.unlock() }
        return outCode == EPIPE ? 0 : outCode
    }
}

private func writeAll(_ bytes: [UInt8], to descriptor: Int32) -> Int32 {
    var done = 0
    while done < bytes.count {
        let count = bytes.withUnsafeBytes { buffer in
            retryingInterrupts { write(descriptor, buffer.baseAddress! + done, buffer.count - done) }
        }
        if count < 0 {
            guard errno == EAGAIN else { return errno }
            var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            _ = poll(&wait, 1, 1000)
            continue
        }
        done += count
    }
    return 0
}

extension String {
    /// Without control characters: what others chose (domain names, reasons) must not move the cursor or forge lines.
    var printable: String {
        guard unicodeScalars.contains(where: Self.isControl) else { return self }
        return String(String.UnicodeScalarView(unicodeScalars.map { Self.isControl($0) ? "?" : $0 }))
    }

    private static func isControl(_ scalar: UnicodeScalar) -> Bool {
        scalar.value < 0x20 || (0x7F...0x9F).contains(scalar.value) || (0x202A...0x202E).contains(scalar.value)
    }
}
