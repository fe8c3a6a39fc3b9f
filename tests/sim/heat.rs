//! One stick's heat: an RC node and one of three throttle laws. All of it assumed, as in VIRTUAL_STICK.

/// What crossing the guards does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThrottleLaw {
    /// Speed falls in proportion, 1 at 75 °C to 0.25 at 85 °C.
    Linear,
    /// Half at 75 °C, a quarter at 85 °C; ends 5 K lower.
    Cliff,
    /// As the cliff, but never ends.
    Latched,
}

pub const LAWS: [ThrottleLaw; 3] = [ThrottleLaw::Linear, ThrottleLaw::Cliff, ThrottleLaw::Latched];
pub const LOWER_C: f64 = 75.0;
pub const UPPER_C: f64 = 85.0;
pub const HYSTERESIS_K: f64 = 5.0;
const IDLE_W: f64 = 1.2;
const FULL_W: f64 = 2.2;
const KELVIN_PER_W: f64 = 24.4;
const TAU_S: f64 = 450.0;

#[derive(Clone, Debug)]
pub struct Heat {
    pub law: ThrottleLaw,
    pub ambient_c: f64,
    pub celsius: f64,
    pub level: u8,
    pub above_s: f64,
    at: f64,
}

impl Heat {
    pub fn new(law: ThrottleLaw, ambient_c: f64) -> Self {
        Heat { law, ambient_c, celsius: ambient_c, level: 0, above_s: 0.0, at: 0.0 }
    }

    /// Goes on to `now` seconds; `busy` since the last call. A slowed stick sleeps between inferences and takes less.
    pub fn advance(&mut self, now: f64, busy: bool) {
        let dt = now - self.at;
        if dt <= 0.0 {
            return;
        }
        self.at = now;
        let load = if busy { self.speed() } else { 0.0 };
        let settle = self.ambient_c + KELVIN_PER_W * (IDLE_W + (FULL_W - IDLE_W) * load);
        self.celsius = settle + (self.celsius - settle) * (-dt / TAU_S).exp();
        if self.celsius > LOWER_C {
            self.above_s += dt;
        }
        let level_at = |guard: f64, c: f64| u8::from(c >= LOWER_C - guard) + u8::from(c >= UPPER_C - guard);
        let rising = level_at(0.0, self.celsius);
        if rising > self.level {
            self.level = rising;
        } else if self.law != ThrottleLaw::Latched {
            self.level = self.level.min(level_at(HYSTERESIS_K, self.celsius));
        }
    }

    /// Share of full speed.
    pub fn speed(&self) -> f64 {
        match self.law {
            ThrottleLaw::Linear => {
                1.0 - 0.75 * ((self.celsius - LOWER_C) / (UPPER_C - LOWER_C)).clamp(0.0, 1.0)
            }
            _ => [1.0, 0.5, 0.25][usize::from(self.level)],
        }
    }
}
