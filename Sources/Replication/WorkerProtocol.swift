import CLinux
import Foundation
import Glibc
import MigrationStream
import Platform
import ReplicaStore

/// What a source worker is told at its start.
public struct SourceWorkerOptions: Codable, Sendable {
    public var domain: String
    /// This host's name, as the peers know it.
    public var host: String
    /// Where the shadows are; the engine `periodic` has one.
    public var peers: [SourcePeer]
    /// Absent on loopback without a secret.
    public var secret: Data?
    /// Where QEMU connects.
    public var streamPath: String
    /// QEMU's user, who must be able to connect.
    public var streamOwner: UInt32
    public var streamGroup: UInt32
    public var intervalMs: Double
    public var intervalLimitMs: Double
    /// Ceiling on captured bytes that the shadow has not committed.
    public var ceilingBytes: Int
    public var keepaliveMs: Double
    public var peerTimeoutMs: Double
    /// The disks that are part of the epochs, and where their mirrors connect.
    public var disks: [CapturedDisk] = []
    public var diskPath = ""
    /// How epochs are captured.
    public var engine = Engine.continuous

    /// With one shadow.
    public init(session: UUID, domain: String, host: String, peer: String, peerAddress: String, peerPort: UInt16, secret: Data?,
                streamPath: String, streamOwner: UInt32, streamGroup: UInt32, intervalMs: Double, intervalLimitMs: Double,
                ceilingBytes: Int, keepaliveMs: Double, peerTimeoutMs: Double) {
        self.init(domain: domain, host: host, peers: [SourcePeer(session: session, peer: peer, address: peerAddress, port: peerPort)], secret: secret,
                  streamPath: streamPath, streamOwner: streamOwner, streamGroup: streamGroup, intervalMs: intervalMs, intervalLimitMs: intervalLimitMs,
                  ceilingBytes: ceilingBytes, keepaliveMs: keepaliveMs, peerTimeoutMs: peerTimeoutMs)
    }

    public init(domain: String, host: String, peers: [SourcePeer], secret: Data?, streamPath: String, streamOwner: UInt32, streamGroup: UInt32,
                intervalMs: Double, intervalLimitMs: Double, ceilingBytes: Int, keepaliveMs: Double, peerTimeoutMs: Double) {
        self.domain = domain
        self.host = host
        self.peers = peers
        self.secret = secret
        self.streamPath = streamPath
        self.streamOwner = streamOwner
        self.streamGroup = streamGroup
        self.intervalMs = intervalMs
        self.intervalLimitMs = intervalLimitMs
        self.ceilingBytes = ceilingBytes
        self.keepaliveMs = keepaliveMs
        self.peerTimeoutMs = peerTimeoutMs
    }
}

/// One shadow of a guest, as its source worker is told of it.
public struct SourcePeer: Codable, Sendable {
    public var session: UUID
    public var peer: String
    public var address: String
    public var port: UInt16
    /// Epochs to a commit there, from 1 on.
    public var multiple: Int

    public static let multipleRange = 1...1000

    public init(session: UUID, peer: String, address: String, port: UInt16, multiple: Int = 1) {
        self.session = session
        self.peer = peer
        self.address = address
        self.port = port
        self.multiple = multiple
    }
}

/// How a guest's epochs are captured.
public enum Engine: String, Codable, Sendable, CaseIterable {
    /// QEMU's COLO stream: many epochs a second. KVM, and a QEMU that has it.
    case continuous
    /// QEMU's background snapshots: an epoch every few seconds to minutes. Any accelerator.
    case periodic
}

/// What QEMU is going to send in a pass of the engine `periodic`.
public enum PassKind: String, Codable, Sendable {
    /// A background snapshot: the guest runs meanwhile, and its memory waits for whoever reads.
    case snapshot
    /// A live migration that ends with the guest stopped.
    case migration
}

/// A disk whose writes are captured.
public struct CapturedDisk: Codable, Sendable {
    /// Place in the list, and number on the wire.
    public var index: Int
    /// As the domain calls it (`vda`), and the name of its export.
    public var target: String
    public var byteCount: UInt64

    public init(index: Int, target: String, byteCount: UInt64) {
        self.index = index
        self.target = target
        self.byteCount = byteCount
    }
}

/// A block of the guest's RAM whose pages lie in memory that the shadow's QEMU shares with its worker.
public struct SharedBlock: Codable, Sendable, Equatable {
    /// QEMU's name: `pc.ram`; with NUMA cells one each (`ram-node0`), and one for each memory device (`memdimm0`).
    public var name: String
    public var byteCount: UInt64
    /// Its pages were set aside when QEMU started (huge pages, `<allocation mode='immediate'/>`), and are not to be given back: nobody
    /// says that there will be others.
    public var isPreallocated: Bool

    public init(name: String, byteCount: UInt64, isPreallocated: Bool = false) {
        self.name = name
        self.byteCount = byteCount
        self.isPreallocated = isPreallocated
    }
}

/// A RAM block of the QEMU that waits for the guest.
public struct WaitingBlock: Codable, Sendable, Equatable {
    public var name: String
    public var byteCount: UInt64
    /// What it can grow to; more than `byteCount` for tables of the firmware only.
    public var mostBytes: UInt64

    public init(name: String, byteCount: UInt64, mostBytes: UInt64) {
        self.name = name
        self.byteCount = byteCount
        self.mostBytes = mostBytes
    }
}

/// What a shadow worker is told at its start. Descriptors 5 and 6 are the journal and the state file, those from 7 on the shared blocks.
public struct ShadowWorkerOptions: Codable, Sendable {
    public var session: UUID
    public var domain: String
    public var sharedBlocks: [SharedBlock]
    /// All blocks of the waiting QEMU, which the primary's have to fit; empty: nobody knows.
    public var waitingBlocks: [WaitingBlock] = []
    public var peerTimeoutMs: Double
    /// What the shared blocks were filled for, by a worker whose other files are lost.
    public var knownHeader: StreamHeader?
    /// The replicas of the disks, and the folder with their journal.
    public var disks: [ReplicaSet.Disk] = []
    public var diskFolder = ""
    public var journalLimitBytes = ReplicaSet.defaultJournalLimitBytes

    public init(session: UUID, domain: String, sharedBlocks: [SharedBlock], peerTimeoutMs: Double) {
        self.session = session
        self.domain = domain
        self.sharedBlocks = sharedBlocks
        self.peerTimeoutMs = peerTimeoutMs
    }
}

/// Parent to worker.
public struct WorkerCommand: Codable, Sendable {
    public enum Verb: String, Codable, Sendable {
        case startSource, startShadow
        /// QEMU's migration status is `colo`: the first copy is over.
        case firstCopyDone
        /// Take one more epoch, leave the guest stopped, have it committed.
        case hold
        /// Let a held guest run on.
        case release
        /// The user suspended the guest: begin no epoch until `resume`.
        case suspend, resume
        /// Begin no epoch for the moment, until `goOn`: a job of libvirt's may stop and start the guest.
        case standBack, goOn
        /// End QEMU's stream, and answer the disks' mirrors until `stop`.
        case endStream
        case setInterval
        /// Send nothing more to `peer`.
        case dropPeer
        /// The mirrors of all disks are ready: what they write from here on belongs to epochs.
        case disksReady
        /// End after the epoch in hand; the guest runs on.
        case stop
        /// (periodic) QEMU is about to connect for a pass of kind `pass`; none comes after all; the pass that was read is sound: `stoppedAt`
        /// and `resumedAt` tell when.
        case takePass, cancelPass, seal
        /// (periodic) The pass that was read is not to become an epoch.
        case dropPass
        /// (periodic) The guest stands still, and its mirrors are about to end: take their last writes.
        case cutDisks
        /// (shadow) The descriptor that comes along is a data connection, handshake done.
        case connection
        /// (shadow) Feed the last committed epoch to the QEMU that listens at `path`.
        case activate
    }
    public var verb: Verb
    public var source: SourceWorkerOptions?
    public var shadow: ShadowWorkerOptions?
    public var intervalMs: Double?
    public var path: String?
    public var pass: PassKind?
    /// `hold`: the shadow that has to commit the epoch; `dropPeer`. A place in the options; absent: the first.
    public var peer: Int?
    /// When QEMU stopped the guest, and when it ran on; nanoseconds on the realtime clock. Without the second it stands still.
    public var stoppedAt: UInt64?
    public var resumedAt: UInt64?

    public init(_ verb: Verb, source: SourceWorkerOptions? = nil, shadow: ShadowWorkerOptions? = nil, intervalMs: Double? = nil,
                path: String? = nil, pass: PassKind? = nil, peer: Int? = nil, stoppedAt: UInt64? = nil, resumedAt: UInt64? = nil) {
        self.pass = pass
        self.peer = peer
        self.stoppedAt = stoppedAt
        self.resumedAt = resumedAt
        self.verb = verb
        self.source = source
        self.shadow = shadow
        self.intervalMs = intervalMs
        self.path = path
    }
}

/// Worker to parent.
public struct WorkerEvent: Codable, Sendable {
    public enum Kind: String, Codable, Sendable {
        /// (source) The stream socket listens.
        case ready
        /// (source) QEMU's RAM was read once; the rest waits for `firstCopyDone`.
        case firstCopyRead
        /// (source) The shadow's replicas are known, the mirrors may begin; their first copy is over, QEMU's stream may begin.
        case disksPrepared, disksFollowing
        /// (source) What the shadow's memory holds of an earlier session is known: `bytes`. The first copy leaves that out.
        case memoryKnown
        /// An epoch was committed for the first time on this connection: the shadow follows.
        case following
        case linkLost
        /// The shadow does not know the session any more, or it cannot be continued: protect anew.
        case sessionLost
        /// (source) On the way to `held`: the guest stands still, the epoch waits for its proof.
        case captured
        /// (source) An answer to `hold`: the guest stands still and the epoch is committed; or why not.
        case held, holdFailed
        case released
        /// (source) Epochs are withheld; `epoch` is the last one begun. `flag`: one was begun before the order came.
        case suspended
        /// (source) QEMU closed the stream.
        case streamEnded
        /// (source) After `streamEnded`: everything captured is committed.
        case drained
        /// (periodic) QEMU is here; its connection comes along, so that somebody goes on reading when the worker dies.
        case passConnected
        /// (periodic) The pass was read to its end. `isWhole`: it can become an epoch.
        case passRead
        /// (periodic) The pass is over and came to nothing; the epoch `epoch` is committed.
        case passFailed, passCommitted
        /// (periodic) An answer to `cutDisks`.
        case disksCut
        /// (shadow) The primary's memory is laid out like this: `header`.
        case introduced
        /// (shadow) The state went into QEMU, or why not.
        case activated, activationFailed
        case failed
    }
    public var kind: Kind
    public var reason: String?
    public var epoch: UInt64?
    /// CLOCK_MONOTONIC nanoseconds: when the guest was stopped for `epoch`.
    public var at: UInt64?
    public var isWhole: Bool?
    public var bytes: UInt64?
    public var header: StreamHeader?
    /// (source) The shadow that it is about, as a place in the options; absent: all.
    public var peer: Int?

    public init(_ kind: Kind, reason: String? = nil, epoch: UInt64? = nil, at: UInt64? = nil, isWhole: Bool? = nil, peer: Int? = nil) {
        self.peer = peer
        self.isWhole = isWhole
        self.kind = kind
        self.reason = reason
        self.epoch = epoch
        self.at = at
    }
}

/// One end of the message socket between a service and its worker.
public final class WorkerChannel: Sendable {
    /// Unix message sockets take about 200 KiB; our largest message is a start command with a secret.
    static let longestMessage = 64 << 10
    /// Where a worker finds its end.
    public static let workerDescriptor: Int32 = 3
    public static let statisticsDescriptor: Int32 = 4

    private let descriptor: Descriptor
    public var raw: Int32 { descriptor.raw }

    public init(_ descriptor: consuming Descriptor) {
        self.descriptor = descriptor
    }

    /// Sends a message and, when given, a descriptor (which stays the caller's).
    public func send(_ message: some Encodable, descriptor fd: Int32 = -1) throws {
        let body = try JSONEncoder().encode(message)
        guard body.count <= Self.longestMessage else {
            throw ChannelError.tooLong(what: "A worker message", length: body.count, limit: Self.longestMessage)
        }
        // A worker that does not empty its queue in 2 s is as good as dead.
        let deadline = MonotonicTime.now.adding(milliseconds: 2000)
        try body.withUnsafeBytes { bytes in
            while true {
                let n = retryingInterrupts {
                    clinux_send_with_fd(raw, bytes.baseAddress, bytes.count, fd, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
                }
                if n >= 0 { return }
                guard errno == EAGAIN else { throw ChannelError.system(SystemError("sendmsg", "worker")) }
                if try wait(raw, for: .writable, until: deadline).isEmpty { throw ChannelError.timedOut(during: "a message to a worker") }
            }
        }
    }

    /// The next message and the descriptor that came with it (-1: none; the caller owns it). Nil: the other end is gone.
    public func receive<Message: Decodable>(_ type: Message.Type, until deadline: MonotonicTime? = nil) throws -> (Message, Int32)? {
        if try wait(raw, for: .readable, until: deadline).isEmpty { throw ChannelError.timedOut(during: "waiting for a worker message") }
        var body = Data(count: Self.longestMessage)
        var fd: Int32 = -1
        var truncated: Int32 = 0
        let n = body.withUnsafeMutableBytes { bytes in
            retryingInterrupts { clinux_receive_with_fd(raw, bytes.baseAddress, bytes.count, &fd, &truncated, 0) }
        }
        if n == 0 || (n < 0 && errno == ECONNRESET) { return nil }
        guard n > 0 else { throw ChannelError.system(SystemError("recvmsg", "worker")) }
        guard truncated == 0 else {
            if fd >= 0 { close(fd) }
            throw ChannelError.tooLong(what: "A worker message", length: n, limit: Self.longestMessage)
        }
        do {
            return (try JSONDecoder().decode(type, from: body.prefix(n)), fd)
        } catch {
            if fd >= 0 { close(fd) }
            throw error
        }
    }
}
