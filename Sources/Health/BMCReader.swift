import Configuration
import ControlProtocol
import Foundation
import Glibc
import Platform

/// Makes readings of this host's BMC, each in a helper process of its own that is ended when its time is over.
public final class BMCReader: Sendable {
    /// Milliseconds.
    public struct Limits: Sendable {
        /// How long the BMC may be silent: FreeIPMI then gives up by itself.
        public var silence = 5000
        /// How long a reading may take. The first one of a large server, which asks for the descriptions of all sensors, takes up to a minute.
        public var total = 90_000

        public init(silence: Int = 5000, total: Int = 90_000) {
            self.silence = silence
            self.total = total
        }
    }

    private let configuration: ServiceConfiguration
    private let executable: String
    private let limits: Limits
    /// A helper that did not end when it was killed: it hangs in the kernel.
    private let stuck = Guarded<Subprocess?>(nil)

    /// `executable` is a shadow-virt, by default this very program.
    public init(_ configuration: ServiceConfiguration, executable: String = "/proc/self/exe", limits: Limits = Limits()) {
        self.configuration = configuration
        self.executable = executable
        self.limits = limits
    }

    /// Where this host keeps what it knows of its BMC.
    var folder: String { Self.folder(configuration) }
    static func folder(_ configuration: ServiceConfiguration) -> String { "\(configuration.stateDirectory)/bmc" }

    /// One reading. Returns or throws within the limit of time and three seconds.
    func read(known: LogMark?) throws(BMCFailure) -> BMCReply {
        try checkStuck()
        let request = try request(known: known)
        let reply: BMCReply
        do {
            reply = try exchange(request)
        } catch let failure as BMCFailure {
            throw failure
        } catch {
            throw BMCFailure(.other, "The helper for the BMC failed: \(error)")
        }
        if let failure = reply.failure { throw failure }
        return reply
    }

    private func request(known: LogMark?) throws(BMCFailure) -> BMCRequest {
        let bmc = configuration.bmc
        var request = BMCRequest(cacheDirectory: "\(folder)/sensors", silenceLimitMs: limits.silence, totalLimitMs: limits.total, known: known)
        do {
            request.password = try configuration.loadBMCPassword()
            request.key = try configuration.loadBMCKey()
        } catch {
            throw BMCFailure(.other, error.located, advice: error.advice)
        }
        if case .network(let address) = bmc.access { request.host = address.description }
        request.session = bmc.session ?? .driver
        (request.authentication, request.driver, request.device) = (bmc.authentication, bmc.driver, bmc.device)
        request.user = bmc.user
        request.privilege = bmc.privilege.rawValue
        request.cipherSuite = bmc.cipherSuite
        request.workarounds = bmc.workarounds
        return request
    }

    private func exchange(_ request: BMCRequest) throws -> BMCReply {
        let deadline = MonotonicTime.now.adding(milliseconds: Double(limits.total))
        let pair = try UnixSocket.streamPair()
        let process = try Subprocess.spawn(executable, arguments: ["worker"] + BMCWorker.arguments, descriptors: [pair.theirs.raw])
        defer { end(process) }
        let channel = LineChannel(pair.takeOurs())
        do {
            try channel.writeLine(ControlCodec.encode(request), deadline: deadline)
            guard let line = try channel.readLine(deadline: deadline) else { throw LineChannel.Failure.closed }
            return try ControlCodec.decode(BMCReply.self, from: line)
        } catch LineChannel.Failure.timedOut {
            throw BMCFailure(.timeLimit, "\(request.name) could not be read within \(limits.total / 1000) s", advice: request.host == nil
                ? "Look at `dmesg | grep ipmi`; a driver may wait for the BMC for ever"
                : "It hangs or is overloaded: try `ipmi-sensors -h \(request.host ?? "")`, and reset the BMC (the host runs on)")
        } catch LineChannel.Failure.closed, LineChannel.Failure.cutOff {
            let status = process.wait(until: .now.adding(milliseconds: 1000)) ?? "no answer"
            throw BMCFailure(.other, "The helper for the BMC ended without a result (\(status))", advice: "See the service's log")
        }
    }

    /// It has had its time; whatever it does now, it ends.
    private func end(_ process: Subprocess) {
        process.signal(SIGKILL)
        guard process.wait(until: .now.adding(milliseconds: 2000)) == nil else { return }
        Log.warning("The BMC's helper, process \(process.pid), cannot be ended: it waits in the kernel's driver")
        stuck.change { $0 = process }
    }

    /// Another one beside it would only hang as well.
    private func checkStuck() throws(BMCFailure) {
        let pid = stuck.change { stuck -> pid_t? in
            guard let process = stuck, process.wait(until: .now) == nil else {
                stuck = nil
                return nil
            }
            return process.pid
        }
        guard let pid else { return }
        throw BMCFailure(.timeLimit, "The last reading of the BMC still hangs in the kernel's driver (process \(pid))",
                         advice: "Look at `dmesg | grep ipmi`; reset the BMC, or use it over the network")
    }
}
