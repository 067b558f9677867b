import Configuration
import ControlProtocol
import Glibc
import Platform

/// What libvirt's hook (`hooks/50-shadow-virt`) runs: passes the call on to the service and waits for nobody. libvirt's daemon stands still
/// meanwhile, takes what a hook prints for a domain's XML, and kills a guest whose `reconnect` hook fails. So: no output, no child,
/// no call of libvirt, an end to every wait, and 0 whatever happens.
enum HookCommand {
    /// Waiting for standard input, which libvirt has written before or writes while we read; and for the service. The rest of the promised
    /// 100 ms is for starting two programs.
    private static let inputLimitMs = 30.0, serviceLimitMs = 30.0
    /// Names another control socket, for tests; libvirt passes no such variable on to a hook.
    static let socketKey = "SHADOW_VIRT_HOOK_SOCKET"

    static func run(_ words: [String], environment: [String: String]) -> Int32 {
        let xml = readInput(until: MonotonicTime.now.adding(milliseconds: inputLimitMs))
        guard var call = HookCall(arguments: words) else { return ExitCode.ok }
        call.xml = xml
        guard let path = environment[socketKey] ?? (try? ServiceConfiguration.load(environment: environment).controlSocket) else { return ExitCode.ok }
        var request = ControlRequest(.hook)
        request.hook = call
        guard let line = try? ControlCodec.encode(request) else { return ExitCode.ok }
        let end = MonotonicTime.now.adding(milliseconds: serviceLimitMs)
        if let socket = try? ControlSocket.connect(path: path, deadline: end) { try? LineChannel(socket).writeLine(line, deadline: end) }
        return ExitCode.ok
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
}
