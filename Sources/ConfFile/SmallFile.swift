import Glibc
import SystemCalls

/// Reads files that have to be small.
public enum SmallFile {
    /// Throws when a file of this status, at this path, must not be used.
    public typealias Check = (stat, String) throws(ConfigurationError) -> Void

    /// The whole content, `ceiling` bytes at most, or nil when there is no such file. `check` sees the status of the very file that is read.
    public static func read(_ path: String, ceiling: Int, check: Check? = nil) throws(ConfigurationError) -> [UInt8]? {
        // Not blocking: a FIFO nobody writes to would hold up the start for good.
        let number = retryingInterrupts { open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) }
        guard number >= 0 else {
            if errno == ENOENT { return nil }
            throw unreadable(path, errno)
        }
        let file = Descriptor(owning: number)
        var status = stat()
        guard fstat(file.raw, &status) == 0 else { throw unreadable(path, errno) }
        guard status.st_mode & S_IFMT != S_IFDIR else { throw unreadable(path, EISDIR) }
        try check?(status, path)
        return try contents(file.raw, path, ceiling: ceiling)
    }

    private static func contents(_ descriptor: Int32, _ path: String, ceiling: Int) throws(ConfigurationError) -> [UInt8] {
        // Read instead of trusting st_size, which is 0 for pipes and may change meanwhile.
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: min(ceiling + 1, 64 << 10))
        while true {
            let count = retryingInterrupts { Glibc.read(descriptor, &chunk, chunk.count) }
            if count < 0 {
                guard errno == EAGAIN else { throw unreadable(path, errno) }
                var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
                guard retryingInterrupts({ poll(&wait, 1, 5000) }) > 0 else { throw unreadable(path, ETIMEDOUT) }
                continue
            }
            if count == 0 { return bytes }
            bytes += chunk[..<count]
            guard bytes.count <= ceiling else {
                throw ConfigurationError(file: path, message: "The file is larger than \(ceiling) bytes", advice: "Check that this is the right file")
            }
        }
    }

    private static func unreadable(_ path: String, _ code: Int32) -> ConfigurationError {
        ConfigurationError(file: path, message: "Cannot read the file: \(String(cString: strerror(code)))",
                           advice: code == EACCES ? "Run as root, or check the file's mode" : "Check the path")
    }
}
