import Glibc

/// Reads a file of the kernel's, below /proc or /sys, to its end.
///
/// Foundation takes a short read for the end, and the kernel gives such after each few KiB of its longer lists: of /proc/PID/maps
/// and mountinfo only the first page came through.
public func kernelText(_ path: String) throws(SystemError) -> String {
    let file = try Descriptor(checking: open(path, O_RDONLY | O_CLOEXEC), "open", path)
    var text: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    while true {
        let n = retryingInterrupts { read(file.raw, &buffer, buffer.count) }
        guard n >= 0 else { throw SystemError("read", path) }
        guard n > 0 else { return String(decoding: text, as: UTF8.self) }
        text += buffer[..<n]
    }
}
