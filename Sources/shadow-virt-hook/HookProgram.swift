import ConfFile
import Glibc
import HookProtocol
import SystemCalls

/// What libvirt's hook (`hooks/50-shadow-virt`) runs: passes the call on to the service and waits for nobody. libvirt's daemon stands still
/// meanwhile, takes what a hook prints for a domain's XML, and kills a guest whose `reconnect` hook fails. So: no output, no child,
/// no call of libvirt, an end to every wait, and 0 whatever happens.
enum HookProgram {
    /// Milliseconds for standard input, which libvirt has written before or writes while we read; and for the service.
    ///
    /// What is sent fits into the socket, so the service is waited for only when its queue is full: 64 others came before, and it has accepted none.
    /// One that merely had no processor yet has accepted them all soon after; for one that hangs nobody is to wait, least of all on a busy host.
    private static let inputLimit = 30.0, serviceLimit = 5.0
    /// For all of it, be it a file system that hangs below the configuration. The rest of the promised 100 ms is for starting shell and program.
    private static let limitMicroseconds: UInt32 = 70_000
    /// Names another configuration, for tests; libvirt passes no such variable on to a hook.
    private static let configurationKey = "SHADOW_VIRT_HOOK_CONFIG"
    /// The number of the shell's process that runs nothing but this program.
    private static let shellKey = "SHADOW_VIRT_HOOK_SHELL"
    private static let highestPriority: Int32 = -20

    /// From here on the kernel ends this process in time, with 0.
    static func limitTime() {
        signal(SIGALRM) { _ in _exit(0) }
        ualarm(limitMicroseconds, 0)
    }

    /// libvirt waits for this process and for the shell that waits for it; where many want the processors, each of them would wait for its turn anew
    /// whenever the other has ended or begun. A few milliseconds before all others harm nobody. Only root may, and nothing is lost otherwise.
    ///
    /// The shell is our parent only when it says so (`shellKey`): another parent, libvirt's daemon for one, is left as it is.
    static func goFirst() {
        setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, highestPriority)
        guard let shell = getenv(shellKey).flatMap({ id_t(String(cString: $0)) }), shell == id_t(getppid()) else { return }
        setpriority(__priority_which_t(PRIO_PROCESS.rawValue), shell, highestPriority)
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
