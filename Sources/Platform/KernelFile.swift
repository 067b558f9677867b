import Glibc

/// A whole file of /proc or /sys as text. Foundation trusts the size that the kernel gives, 0, and takes the first short read, 4 KiB at most, for the
/// end.
public func kernelFile(_ path: String) throws(SystemError) -> String {
    let fd = open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else { throw SystemError("open", path) }
    defer { close(fd) }
    var all: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    while true {
        let got = retryingInterrupts { read(fd, &buffer, buffer.count) }
        guard got >= 0 else { throw SystemError("read", path) }
        if got == 0 { return String(decoding: all, as: UTF8.self) }
        all.append(contentsOf: buffer[..<got])
    }
}
