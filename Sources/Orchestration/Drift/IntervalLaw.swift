import Foundation

/// How long an interval between two epochs should be at the moment: shorter in doubt, longer where epochs are dear and nothing is wrong.
///
///     pressure = the drift score, or what the hardware reports (warning 0.7, critical 1), whichever is more
///
///     configured --pressure >= 0.5--> shortened: at once; from 0.5 to 1 down, evenly by ratio, to the lower bound
///     shortened  --pressure < 0.35 for 60 s--> returning: a quarter longer every 10 s --> configured
///     configured --epochs dear for 20 s, no pressure--> lengthened: by half every 10 s, up to 4 times --cheap--> by a third shorter every 10 s
///
/// Dear: the guest stands still for half of the time, or the shadow lags; cheap: for less than 20 %, so that an interval two thirds as long is not dear
/// again. In doubt epochs may cost two thirds of the guest's time, not more.
struct IntervalLaw: Equatable, Sendable {
    struct Bounds: Equatable, Sendable {
        var configuredMs: Double
        var leastMs: Double
        var mostMs: Double

        /// - Parameter least: as configured; 0: none.
        init(configuredMs: Double, isPeriodic: Bool, least: Int) {
            self.configuredMs = configuredMs
            let automatic = isPeriodic ? max(1000, configuredMs / 6) : max(10, configuredMs / 4)
            leastMs = min(configuredMs, least > 0 ? Double(least) : automatic)
            mostMs = configuredMs * IntervalLaw.mostStretch
        }
    }

    /// What it is decided by.
    struct Look: Sendable {
        /// Seconds, rising.
        var now: Double
        var pressure: Double
        /// What the pressure comes from.
        var cause: String
        /// Of the time, for which epochs stop the guest.
        var pauseShare: Double
        var isLagging: Bool
    }

    enum Mode: String, Sendable { case configured, shortened, returning, lengthened }

    static let enter = 0.5, leave = 0.35, full = 1.0
    static let calmSeconds = 60.0, stepSeconds = 10.0, growth = 1.25
    static let dearShare = 0.5, cheapShare = 0.2, dearSeconds = 20.0, stretch = 1.5, mostStretch = 4.0
    /// Of the guest's time, in doubt.
    static let mostShare = 2.0 / 3

    private(set) var bounds: Bounds
    private(set) var intervalMs: Double
    private(set) var mode = Mode.configured
    private(set) var reason = ""
    private var lastTrouble = 0.0
    private var lastStep = -Double.infinity
    private var dearSince: Double?

    init(_ bounds: Bounds) {
        self.bounds = bounds
        intervalMs = bounds.configuredMs
        say()
    }

    /// The interval from now on, milliseconds.
    mutating func step(_ look: Look) -> Double {
        if look.pressure >= Self.enter { shorten(look) }
        switch mode {
        case .shortened: calm(look)
        case .returning: comeBack(look)
        case .configured, .lengthened: weigh(look)
        }
        return intervalMs
    }

    private mutating func shorten(_ look: Look) {
        let depth = min(1, (look.pressure - Self.enter) / (Self.full - Self.enter))
        let wanted = bounds.configuredMs * pow(bounds.leastMs / bounds.configuredMs, depth)
        // What an epoch stops the guest for does not shrink with the interval.
        let affordable = min(bounds.configuredMs, intervalMs * look.pauseShare / Self.mostShare)
        let before = (mode, intervalMs)
        mode = .shortened
        if wanted < intervalMs { intervalMs = max(wanted, min(affordable, intervalMs)) }
        // Only when it is well beyond: pauses differ from one look to the next.
        if affordable > intervalMs * 1.2 { intervalMs = affordable }
        if before.0 != mode || before.1 != intervalMs { say(look.cause, isDear: affordable > wanted) }
    }

    private mutating func calm(_ look: Look) {
        if look.pressure >= Self.leave { lastTrouble = look.now }
        guard look.now - lastTrouble >= Self.calmSeconds else { return }
        mode = .returning
        lastStep = look.now
        say()
    }

    private mutating func comeBack(_ look: Look) {
        guard look.pressure < Self.leave, isDue(look) else { return }
        intervalMs = min(bounds.configuredMs, intervalMs * Self.growth)
        if intervalMs >= bounds.configuredMs { mode = .configured }
        say()
    }

    private mutating func weigh(_ look: Look) {
        let isDear = look.pauseShare > Self.dearShare || look.isLagging
        dearSince = isDear ? dearSince ?? look.now : nil
        guard look.pressure < Self.leave else { return }
        if let dearSince, look.now - dearSince >= Self.dearSeconds, intervalMs < bounds.mostMs, isDue(look) {
            intervalMs = min(bounds.mostMs, intervalMs * Self.stretch)
            mode = .lengthened
            say(look.isLagging ? "the shadow lags behind" : "epochs stop the guest for \(Int(look.pauseShare * 100)) % of the time")
        } else if mode == .lengthened, !isDear, look.pauseShare < Self.cheapShare, isDue(look) {
            intervalMs = max(bounds.configuredMs, intervalMs / Self.stretch)
            if intervalMs <= bounds.configuredMs { mode = .configured }
            say("epochs are cheaper again")
        }
    }

    /// Steps are not taken faster than this, and note when they were.
    private mutating func isDue(_ look: Look) -> Bool {
        guard look.now - lastStep >= Self.stepSeconds else { return false }
        lastStep = look.now
        return true
    }

    private mutating func say(_ cause: String = "", isDear: Bool = false) {
        reason = switch mode {
        case .configured: "as configured"
        case .shortened where bounds.leastMs >= bounds.configuredMs: "as configured, which is the lower bound: \(cause)"
        case .shortened: "shortened: \(cause)" + (isDear ? "; no shorter, because epochs cost two thirds of the guest's time" : "")
        case .returning: "calm again: going back to the configured interval step by step"
        case .lengthened: "lengthened: \(cause)"
        }
    }
}
