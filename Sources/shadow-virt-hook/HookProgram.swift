import ConfFile
import Glibc
import HookProtocol
import SystemCalls

/// What libvirt's hook (`hooks/50-shadow-virt`) runs: passes the call on to the service and waits for nobody. libvirt's daemon stands still
/// meanwhile, takes what a hook prints for a domain's XML, and kills a guest whose `reconnect` hook fails. So: no output, no child,
/// no call of libvirt, an end to every wait, and 0 whatever happens.
enum HookProgram {
    /// Milliseconds for standard input, which libvirt has written before or writes while we read; and for the service.
    private static let inputLimit = 30.0, serviceLimit = 30.0
    /// For all of it, be it a file system that hangs below the configuration. The rest of the promised 100 ms is for starting shell and program.
    private static let limitMicroseconds: UInt32 = 70_000
    /// Names another configuration, for tests; libvirt passes no such variable on to a hook.
    private static let configurationKey = "SHADOW_VIRT_HOOK_CONFIG"

    /// From here on the kernel ends this process in time, with 0.
    static func limitTime() {
        signal(SIGALRM) { _ in _exit(0) }
        ualarm(limitMicroseconds, 0)
    }

    static func run(_ words: ArraySlice<String>) {
        // Before anything is opened: with standard input closed, that would be number 0.
        let xml = readInput(until: MonotonicTime.now.adding(milliseconds: inputLimit))
        guard var call = HookCall(arguments: Array(words)) else { return }
        call.xml = xml
        let line = call.requestLine + [UInt8(ascii: "\n")]
        let end = MonotonicTime.now.adding(milliseconds: serviceLimit)
        guard let socket = try? ControlSocket.connect(path: controlSocket, deadline: end) else { return }
        try? writeFully(socket.raw, line, deadline: end, during: "libvirt's hook")
    }

    /// Everything on standard input, or nil when that is nothing, too much, no text, or has no end in time. What is too much is read
    /// all the same: whoever writes is not to meet a closed pipe.
    private static func readInput(until limit: MonotonicTime) -> String? {
        var bytes: [UInt8] = []
        var isTooLong = false
        var chunk = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            // A file is always readable, a pipe may never be.
            guard let ready = try? wait(0, for: .readable, until: limit), !ready.isEmpty, limit > .now else { return nil }
            let count = retryingInterrupts { read(0, &chunk, chunk.count) }
            guard count > 0 else {
                guard count == 0, !bytes.isEmpty, !isTooLong else { return nil }
                return String(validating: bytes, as: UTF8.self)
            }
            isTooLong = isTooLong || bytes.count + count > HookCall.xmlCeiling
            if !isTooLong { bytes += chunk[..<count] }
        }
    }

    /// As the configuration has it. One that cannot be read is the business of the service, which may have read it when it still could be.
    private static var controlSocket: String {
        let file = getenv(configurationKey).map { String(cString: $0) } ?? ConfDocument.servicePath
        guard let bytes = try? SmallFile.read(file, ceiling: ConfDocument.sizeCeiling), let document = try? ConfDocument(bytes: bytes, file: file),
              case .string(let path) = document.entries.first(where: { $0.name == "control_socket" })?.value.content else { return ControlSocket.defaultPath }
        return path
    }
}
