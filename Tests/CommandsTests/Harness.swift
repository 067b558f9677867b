import Foundation
import Platform
import XCTest
@testable import Commands
@testable import Configuration
@testable import ControlProtocol

/// What a command printed and how it ended.
struct Outcome {
    var code: Int32
    var out: String
    var err: String
}

/// Runs command lines in this process, with a terminal or without one.
final class Harness: @unchecked Sendable {
    private let lock = NSLock()
    private var out: [UInt8] = [], err: [UInt8] = []
    var isTerminal = false
    var environment: [String: String] = ["TERM": "xterm"]
    var served: [(ServiceConfiguration, String)] = []
    var worked: [[String]] = []
    var hasLocalDoctor = false
    var localDoctor: [(ControlRequest, String)] = []
    /// What writing to stdout meets.
    var outError: Int32 = 0

    func output() -> Output {
        Output(outIsTerminal: isTerminal, errorIsTerminal: isTerminal, environment: environment,
               out: { [self] bytes in
                   lock.withLock { out += bytes }
                   return outError
               },
               error: { [self] bytes in
                   lock.withLock { err += bytes }
                   return 0
               })
    }

    func run(_ words: String...) -> Outcome { run(words) }

    func run(_ words: [String]) -> Outcome {
        (out, err) = ([], [])
        var table = CommandTable(
            serve: { [self] configuration, path in
                served.append((configuration, path))
                return 0
            },
            worker: { [self] words in
                worked.append(words)
                return 7
            })
        if hasLocalDoctor {
            table.doctor = { [self] request, configuration in
                localDoctor.append((request, configuration.libvirtURI))
                return DoctorReport(host: "a", domain: request.domain, findings: [Finding("kvm", .ok, "/dev/kvm works")])
            }
        }
        let code = table.run(words, output: output(), environment: environment)
        return Outcome(code: code, out: String(decoding: out, as: UTF8.self), err: String(decoding: err, as: UTF8.self))
    }
}

/// A service on a real socket: answers every request with the same lines and remembers the requests.
final class FakeService: @unchecked Sendable {
    let path = "/tmp/shadow-virt-\(UUID().uuidString.prefix(8)).sock"
    private let lock = NSLock()
    private var seen: [String] = []
    private let stopped = DispatchSemaphore(value: 0)
    private let listenerNumber: Int32

    init(_ answers: [ControlResponse]) throws {
        let lines = try answers.map { try ControlCodec.encode($0) }
        let listener = try ControlSocket.listen(path: path)
        listenerNumber = try listener.duplicate().release()
        let number = listener.release()
        // Weak: the thread must not keep the service alive.
        Thread.detachNewThread { [weak self, stopped] in
            let listener = Descriptor(owning: number)
            // shutdown() on the listener makes accept fail and so ends the thread.
            while let client = try? acceptConnection(listener.raw, until: nil) {
                let channel = LineChannel(client)
                guard let line = try? channel.readLine(deadline: .now.adding(milliseconds: 5000)) else { continue }
                self?.remember(line)
                for answer in lines { try? channel.writeLine(answer, deadline: .now.adding(milliseconds: 5000)) }
            }
            stopped.signal()
        }
    }

    convenience init(_ answer: ControlResponse) throws { try self.init([answer]) }

    deinit {
        shutdown(listenerNumber, Int32(SHUT_RDWR))
        close(listenerNumber)
        stopped.wait()
        unlink(path)
    }

    private func remember(_ line: [UInt8]) { lock.withLock { seen.append(String(decoding: line, as: UTF8.self)) } }

    var requests: [String] { lock.withLock { seen } }
}

enum Samples {
    static func domain(_ name: String = "web1", _ role: Role = .primary, _ state: ProtectionState = .protected, reason: String = "") -> DomainStatus {
        var domain = DomainStatus(domain: name, uuid: "8f8a7c1e-0000-4000-8000-000000000001", role: role, peer: "b", engine: "continuous",
                                  state: state, reason: reason, since: "2024-05-01T10:00:00.000Z", configuredIntervalMs: 20)
        domain.epoch = 12345
        domain.committedEpoch = 12344
        domain.epochsPerSecond = 48.91
        domain.pauseMsMedian = 0.62
        domain.pauseMsP99 = 1.31
        domain.lagEpochs = 1
        domain.lagBytes = 3_355_443
        domain.lastCommitAgeMs = 12.4
        domain.rpoMs = 31.9
        domain.bytesDirtied = 4 << 30
        domain.bytesSent = 1 << 30
        return domain
    }

    static func status(_ domains: [DomainStatus]) -> StatusReport {
        StatusReport(host: "a", version: "0.1.0", time: "2024-05-01T10:00:01.000Z", domains: domains)
    }

    static let syncing: DomainStatus = {
        var domain = DomainStatus(domain: "db", uuid: "u", role: .primary, peer: "host-c", engine: "periodic", state: .syncing, reason: "First protection",
                                  since: "2024-05-01T10:00:00.000Z", configuredIntervalMs: 1500)
        domain.syncBytesDone = 432_013_312
        domain.syncBytesTotal = 1 << 30
        return domain
    }()

    static let handover = HandoverReport(domain: "web1", from: "a", to: "b", epoch: 77, epochsLost: 0, activationMs: 12.1, outageMs: 48.2)

    static let doctor = DoctorReport(host: "a", domain: "web1", findings: [
        Finding("kvm", .ok, "/dev/kvm works"),
        Finding("machine-type", .failed, "pc-q35-9.9 is not known on b", advice: "Use a machine type that both hosts have: `virsh capabilities` on b lists them"),
        Finding("memory", .warning, "b has 1.0GiB left"),
    ])
}
