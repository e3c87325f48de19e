//! Links and questions.
