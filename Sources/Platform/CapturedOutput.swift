import Glibc

extension Subprocess {
    /// How a program ended (`exit 0`, `signal 9`) and what it printed on its standard output.
    public struct Captured: Sendable {
        public let status: String
        public let output: [UInt8]
    }

    /// Runs a program to its end and returns what it printed; its standard error is thrown away.
    ///
    /// - Parameters:
    ///   - ceilingKiB: it gets no more printed than this: the kernel ends it (`RLIMIT_FSIZE`).
    /// - Throws: `SystemError` when it cannot be started, and with `ETIMEDOUT` when it did not end in time; it is killed then.
    public static func capture(_ path: String, arguments: [String], limitMs: Double, ceilingKiB: Int = 1024) throws(SystemError) -> Captured {
        // Into memory rather than a pipe: nobody has to read along, and nobody else who was started meanwhile can hold its end open.
        let output = try memoryFile("output", bytes: 0)
        // ulimit counts in 512 bytes.
        let script = "ulimit -f \(ceilingKiB * 2); exec \"$0\" \"$@\" >&3 2>/dev/null 3>&-"
        let child = try spawn("/bin/sh", arguments: ["-c", script, path] + arguments, descriptors: [output.raw])
        guard let status = child.wait(until: MonotonicTime.now.adding(milliseconds: limitMs)) else {
            child.signal(SIGKILL)
            // One that waits for a dead disk cannot be killed; it stays until the disk answers.
            _ = child.wait(until: MonotonicTime.now.adding(milliseconds: 1000))
            throw SystemError("waitpid", path, code: ETIMEDOUT)
        }
        var bytes = [UInt8](repeating: 0, count: ceilingKiB << 10)
        var count = 0
        while count < bytes.count {
            let n = bytes.withUnsafeMutableBytes { buffer in
                retryingInterrupts { pread(output.raw, buffer.baseAddress.map { $0 + count }, buffer.count - count, off_t(count)) }
            }
            guard n >= 0 else { throw SystemError("pread", "output of \(path)") }
            guard n > 0 else { break }
            count += n
        }
        return Captured(status: status, output: Array(bytes[..<count]))
    }
}
